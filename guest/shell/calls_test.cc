// libsnow, the shell's commands and the Python module, through the real agent; the test answers as
// the host does. A clone is the same machine told by `resume` that it is one, so each test plays
// the clones one after the other, keeps their results, and then the parent.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "guest/agent/agent_harness.h"
#include "guest/libsnow/hierarchy.h"
#include "guest/libsnow/snow.h"
#include "guest/shell/capture.h"

namespace snow::guest {
namespace {

using channel::field;
using channel::Fields;
using channel::Type;

class CallsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = AgentHarness::missing(); !why.empty()) GTEST_SKIP() << why;
    agent_.emplace();
    agent_->expect(Type::hello);
    setenv("SNOW_AGENT_SOCKET", (agent_->run_path() + "/agent.sock").c_str(), 1);
    setenv("SNOW_LIBRARY", SNOW_LIBRARY, 1);
    setenv("PYTHONPATH", SNOW_PYTHON_PATH, 1);
    setenv("PYTHONDONTWRITEBYTECODE", "1", 1);
  }

  // Takes the next call, which has to be `name`.
  uint32_t call(const std::string& name, Fields* fields = nullptr) {
    const auto message = agent_->expect(Type::call);
    if (!message) {
      ADD_FAILURE() << "no call " << name;
      return 0;
    }
    const Fields got = channel::decode_fields(message->payload).value_or(Fields{});
    EXPECT_EQ(field(got, "call"), name);
    if (fields != nullptr) *fields = got;
    return message->stream;
  }
  void answer(uint32_t stream, Fields fields) {
    fields.emplace("code", "ok");
    agent_->send(Type::answer, stream, fields);
  }
  void grant(unsigned n) {
    answer(call("ticket"), {{"ticket", "t1"}, {"granted", std::to_string(n)}});
  }
  // As after a thaw: the machine is number `index` of the fork.
  void thaw_as(unsigned index) {
    const uint32_t stream = call("clone");
    agent_->send(Type::prepare, 0, "");
    agent_->expect(Type::prepared);
    agent_->send(Type::resume, 0,
                 Fields{{"changed", "1"},
                        {"ticket", "t1"},
                        {"call", std::to_string(stream)},
                        {"index", std::to_string(index)}});
    agent_->expect(Type::ready);
  }
  struct Exit {
    std::string status, payload;
  };
  // A clone's exit; the stream stays without an answer, as on a host.
  Exit take_exit() {
    Fields fields;
    Exit result;
    const uint32_t stream = call("exit", &fields);
    result.status = field(fields, "status");
    while (const auto message = agent_->receive()) {
      if (message->stream != stream) continue;
      if (message->type == Type::eof) return result;
      if (message->type == Type::data) {
        result.payload += message->payload.substr(1);
        agent_->credit(stream, static_cast<uint32_t>(message->payload.size() - 1));
      }
    }
    ADD_FAILURE() << "the result did not end";
    return result;
  }
  struct Clone {
    std::string how, payload;
  };
  void answer_join(const std::vector<Clone>& clones) {
    const uint32_t stream = call("join");
    Fields fields = {{"count", std::to_string(clones.size())}};
    for (size_t i = 0; i < clones.size(); ++i) {
      const std::string prefix = std::to_string(i) + ".";
      fields[prefix + "index"] = std::to_string(i + 1);
      fields[prefix + "how"] = clones[i].how;
      fields[prefix + "status"] = "0";
      fields[prefix + "size"] = std::to_string(clones[i].payload.size());
    }
    answer(stream, fields);
    // As the host does it: all payloads are one stream, a message may hold parts of several.
    std::string all;
    for (const Clone& clone : clones) all += clone.payload;
    for (size_t at = 0; at < all.size(); at += 32 * 1024) {
      agent_->send(Type::data, stream, "\1" + all.substr(at, 32 * 1024));
    }
    agent_->send(Type::eof, stream, "\1");
  }

  // A program beside the test, its output in files.
  struct Running {
    pid_t pid = -1;
    ~Running() { stop(); }
    void stop() {
      if (pid > 0) {
        kill(-pid, SIGKILL);
        waitpid(pid, nullptr, 0);
      }
      pid = -1;
    }
    int wait() {
      int status = 0;
      waitpid(pid, &status, 0);
      pid = -1;
      return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }
  };
  void start(Running& running, const std::string& script) {
    const std::string out = agent_->folder() + "/out";
    const std::string err = agent_->folder() + "/err";
    const std::string text = "PATH=" SNOW_GUEST_PATH ":$PATH; " + script;
    running.pid = fork();
    if (running.pid != 0) return;
    setpgid(0, 0);
    dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), 1);
    dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644), 2);
    execl("/bin/sh", "sh", "-c", text.c_str(), nullptr);
    _exit(99);
  }
  std::string out() { return read_small_file(agent_->folder() + "/out").value_or(""); }
  std::string err() { return read_small_file(agent_->folder() + "/err").value_or(""); }

  // Runs a script as each of n clones, then as the parent with their results; its exit code.
  int fork_of(const std::string& script, unsigned n) {
    std::vector<Clone> clones;
    for (unsigned i = 1; i <= n; ++i) {
      Running running;
      start(running, script);
      grant(n);
      thaw_as(i);
      clones.push_back({"exited", take_exit().payload});
    }
    return parent_of(script, clones);
  }
  int parent_of(const std::string& script, const std::vector<Clone>& clones) {
    Running running;
    start(running, script);
    grant(static_cast<unsigned>(clones.size()));
    thaw_as(0);
    answer_join(clones);
    return running.wait();
  }
  // Where a program asks its clones to be. It gets none.
  std::string place_of(const std::string& script) {
    Running running;
    start(running, script);
    Fields fields;
    answer(call("ticket", &fields), {{"code", "no_room"}, {"message", "enough is known"}});
    EXPECT_NE(running.wait(), 0) << script;
    return std::string(field(fields, "place"));
  }
  std::optional<AgentHarness> agent_;
};

TEST_F(CallsTest, LibsnowCarriesALargeResultBothWays) {
  const std::string big(3'000'000, 'r');
  std::thread clone([&big] {
    snow_ticket* ticket = nullptr;
    EXPECT_EQ(snow_request_ticket(4, 0, &ticket), 2);
    EXPECT_STREQ(snow_ticket_id(ticket), "t1");
    EXPECT_EQ(snow_ticket_processes(ticket), 2u);
    EXPECT_EQ(snow_clone(ticket), 1);
    EXPECT_EQ(snow_exit(5, big.data(), big.size()), SNOW_E_UNAVAILABLE);
    snow_ticket_free(ticket);
  });
  grant(2);
  thaw_as(1);
  const Exit exit = take_exit();
  EXPECT_EQ(exit.status, "5");
  EXPECT_TRUE(exit.payload == big);
  const std::string small = "second";
  agent_.reset();  // the clone's machine ends: snow_exit returns, as it never does in a guest
  clone.join();

  SetUp();
  std::thread parent([&] {
    snow_ticket* ticket = nullptr;
    EXPECT_EQ(snow_request_ticket(2, SNOW_EXACT, &ticket), 2);
    EXPECT_EQ(snow_clone(ticket), 0);
    snow_results* results = nullptr;
    EXPECT_EQ(snow_join(ticket, -1, &results), 3);
    const snow_result* first = snow_results_get(results, 0);
    EXPECT_EQ(std::string_view(static_cast<const char*>(first->payload), first->size), small);
    EXPECT_EQ(snow_results_get(results, 1)->how, SNOW_CRASHED);
    EXPECT_EQ(snow_results_get(results, 2)->size, 200'000u);
    EXPECT_EQ(snow_results_get(results, 3), nullptr);
    snow_results_free(results);
    EXPECT_EQ(snow_kill(ticket), 1);
    snow_ticket_free(ticket);
  });
  grant(2);
  thaw_as(0);
  answer_join({{"exited", small}, {"crashed", ""}, {"exited", std::string(200'000, 'x')}});
  answer(call("kill"), {{"count", "1"}});
  parent.join();
}

TEST_F(CallsTest, LibsnowNamesErrors) {
  std::thread program([] {
    snow_ticket* ticket = nullptr;
    EXPECT_EQ(snow_request_ticket(0, 0, &ticket), SNOW_E_INVALID);
    EXPECT_EQ(snow_request_ticket(99, 0, &ticket), SNOW_E_NO_ROOM);
    EXPECT_STREQ(snow_message(), "the host is full");
    EXPECT_STREQ(snow_strerror(SNOW_E_NO_ROOM), "no_room");
    EXPECT_EQ(ticket, nullptr);
    EXPECT_EQ(snow_exit(0, "", SNOW_MAX_PAYLOAD + 1), SNOW_E_INVALID);
    EXPECT_EQ(snow_exit(0, "x", 1), SNOW_E_WRONG_STATE);
  });
  answer(call("ticket"), {{"code", "no_room"}, {"message", "the host is full"}});
  answer(call("exit"), {{"code", "wrong_state"}, {"message", "this is no clone"}});
  program.join();
  setenv("SNOW_AGENT_SOCKET", "/no/such/socket", 1);
  snow_machine machine;
  EXPECT_EQ(snow_info(&machine), SNOW_E_UNAVAILABLE);
}

TEST_F(CallsTest, LibsnowSaysWhereClonesShallBe) {
  std::thread program([] {
    snow_ticket* ticket = nullptr;
    for (const unsigned flags : {SNOW_SPREAD, SNOW_LOCAL | SNOW_EXACT, 0u}) {
      EXPECT_EQ(snow_request_ticket(2, flags, &ticket), 2);
      snow_ticket_free(ticket);
    }
    EXPECT_EQ(snow_request_ticket(2, SNOW_SPREAD | SNOW_LOCAL, &ticket), SNOW_E_INVALID);
  });
  for (const char* place : {"spread", "local", ""}) {
    Fields fields;
    answer(call("ticket", &fields), {{"ticket", "t1"}, {"granted", "2"}});
    EXPECT_EQ(field(fields, "place"), place);
    EXPECT_EQ(fields.contains("place"), *place != '\0');
  }
  program.join();
}

TEST_F(CallsTest, TheShellSaysWhereClonesShallBe) {
  EXPECT_EQ(place_of("snow-clone --spread 2 -- true"), "spread");
  EXPECT_EQ(place_of("snow-clone -H --local 2 -- true --spread"), "local");
  EXPECT_EQ(place_of("snow-clone 2 -- true --spread"), "");
  EXPECT_EQ(place_of("echo true | snow-parallel --spread -j 2 -"), "spread");
}

TEST_F(CallsTest, LibsnowCheckpointsAndCreates) {
  std::thread program([] {
    char id[SNOW_ID_BYTES];
    EXPECT_EQ(snow_checkpoint(id), 0);
    EXPECT_STREQ(id, "c1");
    snow_ticket* ticket = nullptr;
    EXPECT_EQ(snow_request_ticket(3, 0, &ticket), 3);
    EXPECT_EQ(snow_create_clones(id, ticket), 3);
    snow_ticket_free(ticket);
  });
  answer(call("checkpoint"), {{"checkpoint", "c1"}});
  grant(3);
  Fields fields;
  answer(call("create", &fields), {{"count", "3"}});
  EXPECT_EQ(fields["checkpoint"], "c1");
  program.join();
}

TEST_F(CallsTest, SnowCloneRunsACommandInEveryClone) {
  const int code = fork_of(
      "snow-clone 3 -- sh -c 'echo clone {id} of $SNOW_COUNT; echo e{id} >&2; "
      "exit $(( {id} == 2 ))'",
      3);
  EXPECT_EQ(code, 1);
  EXPECT_EQ(out(), "clone 1 of 3\nclone 2 of 3\nclone 3 of 3\n");
  EXPECT_EQ(err(), "e1\ne2\ne3\n");
}

TEST_F(CallsTest, SnowCloneFillsTheVcpusWithProcesses) {
  const long vcpus = sysconf(_SC_NPROCESSORS_ONLN);
  EXPECT_EQ(fork_of("snow-clone -H 2 -- echo {id}", 2), 0);
  std::string expected;
  for (long id = 1; id <= 2 * vcpus; ++id) expected += std::to_string(id) + "\n";
  EXPECT_EQ(out(), expected);
}

TEST_F(CallsTest, SnowParallelKeepsTheOrderOfLines) {
  const std::string file = agent_->folder() + "/lines";
  ASSERT_EQ(replace_file(file, "echo a\necho b; false\nno-such-command\necho d\necho e\n", 0644),
            0);
  EXPECT_EQ(fork_of("snow-parallel -j 2 " + file, 2), 2);
  EXPECT_EQ(out(), "a\nb\nd\ne\n");
}

TEST_F(CallsTest, SnowParallelCountsADeadClonesLines) {
  const std::string lines = encode_outputs({{0, 0, "a\n", ""}, {2, 0, "c\n", ""}});
  EXPECT_EQ(parent_of("printf 'echo a\\necho b\\necho c\\necho d\\n' | snow-parallel -j 2 -",
                      {{"exited", lines}, {"killed", ""}}),
            2);
  EXPECT_EQ(out(), "a\nc\n");
  EXPECT_NE(err().find("clone 2 was killed"), std::string::npos) << err();
}

TEST_F(CallsTest, SnowInfoAndSnowExit) {
  Running running;
  start(running, "snow-info");
  answer(call("info"), {{"id", "vm1"}, {"name", "web"}, {"index", "2"}, {"generation", "4"}});
  EXPECT_EQ(running.wait(), 0);
  EXPECT_NE(out().find("SNOW_NAME=web\nSNOW_INDEX=2\n"), std::string::npos) << out();
  start(running, "echo result | snow-exit 9");
  const Exit exit = take_exit();
  EXPECT_EQ(exit.status, "9");
  EXPECT_EQ(exit.payload, "result\n");
}

// Python itself has no sanitizer's run time, which the library would need to come first.
class PythonTest : public CallsTest {
 protected:
  void SetUp() override {
#ifdef SNOW_SANITIZED
    GTEST_SKIP() << "python3 cannot load a libsnow.so built with sanitizers";
#endif
    CallsTest::SetUp();
  }
};

constexpr const char* kPython = "python3 -c '\nimport snow\n";

TEST_F(PythonTest, SaysWhereClonesShallBe) {
  EXPECT_EQ(place_of(std::string(kPython) + "snow.ticket(2, spread=True)'"), "spread");
  EXPECT_EQ(place_of(std::string(kPython) + "snow.ticket(2, snow.LOCAL)'"), "local");
  EXPECT_EQ(place_of(std::string(kPython) + "snow.map(abs, [1, 2], spread=True)'"), "spread");
  EXPECT_EQ(place_of(std::string(kPython) + "snow.map(abs, [1, 2])'"), "");
}

TEST_F(PythonTest, MapsInOrder) {
  EXPECT_EQ(fork_of(std::string(kPython) +
                        "base = 100\nprint(snow.map(lambda x: base + x, range(7), n=3))'",
                    3),
            0)
      << err();
  EXPECT_EQ(out(), "[100, 101, 102, 103, 104, 105, 106]\n");
}

TEST_F(PythonTest, RaisesAClonesExceptionAtTheJoin) {
  EXPECT_EQ(fork_of(std::string(kPython) +
                        "def work(x):\n  return 10 // x\n"
                        "try:\n  snow.map(work, [1, 0], n=2)\n"
                        "except snow.CloneError as e:\n"
                        "  print(e.index, type(e.exception).__name__, \"in work\" in e.traceback)'",
                    2),
            0)
      << err();
  EXPECT_EQ(out(), "2 ZeroDivisionError True\n");
}

TEST_F(PythonTest, SaysWhichCloneDied) {
  EXPECT_EQ(
      parent_of(std::string(kPython) + "with snow.ticket(2) as t:\n  if t.clone(): snow.exit()\n"
                                       "  for r in t.join():\n"
                                       "    try: r.value\n"
                                       "    except snow.CloneDied as e: print(e.index, e.how)'",
                {{"crashed", ""}, {"lost", ""}}),
      0)
      << err();
  EXPECT_EQ(out(), "1 crashed\n2 lost\n");
}

TEST_F(PythonTest, FillsTheVcpusWithProcesses) {
  EXPECT_EQ(fork_of(std::string(kPython) +
                        "print(snow.map(lambda x: x * 2, range(9), n=2, flags=snow.HIERARCHICAL))'",
                    2),
            0)
      << err();
  EXPECT_EQ(out(), "[0, 2, 4, 6, 8, 10, 12, 14, 16]\n");
}

TEST(Records, ComeBackAndRefuseWhatIsCut) {
  const std::string bytes = encode_records({{SNOW_EXITED, -3, "abc"}, {SNOW_CRASHED, 139, ""}});
  const auto records = decode_records(bytes, 2);
  ASSERT_TRUE(records);
  EXPECT_EQ((*records)[0].status, -3);
  EXPECT_EQ((*records)[1].how, unsigned{SNOW_CRASHED});
  EXPECT_FALSE(decode_records(bytes, 1));
  EXPECT_FALSE(decode_records(bytes, 3));
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(decode_records(bytes.substr(0, size), 2)) << size;
  }
}

TEST(Capture, KeepsALimitAndSaysSo) {
  const Output output = run_captured({"sh", "-c", "printf 0123456789; echo e >&2; exit 3"}, 5);
  EXPECT_EQ(output.status, 3);
  EXPECT_EQ(output.out.size() + output.err.find("("), 5u);
  EXPECT_NE(output.err.find("7 more bytes were dropped"), std::string::npos);
  EXPECT_EQ(run_captured({"/no/such"}, 100).status, 127);
}

}  // namespace
}  // namespace snow::guest
