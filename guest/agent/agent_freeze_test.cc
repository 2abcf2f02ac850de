// The real agent through a freeze: processes stand still, identity changes, calls are answered.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest/agent/agent_harness.h"

namespace snow::guest {
namespace {

using channel::field;
using channel::Fields;
using channel::Message;
using channel::Type;

class AgentFreezeTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = AgentHarness::missing(); !why.empty()) GTEST_SKIP() << why;
    agent_.emplace();
    agent_->expect(Type::hello);
  }
  Fields prepare() {
    agent_->send(Type::prepare, 0, Fields{{"reason", "test"}});
    return agent_->expect_fields(Type::prepared).value_or(Fields{});
  }
  Fields resume(Fields fields) {
    fields.emplace("changed", "1");
    agent_->send(Type::resume, 0, fields);
    return agent_->expect_fields(Type::ready).value_or(Fields{});
  }
  // Until the agent has taken a program's call to the host.
  std::pair<uint32_t, Fields> next_call() {
    const auto message = agent_->expect(Type::call);
    if (!message) return {};
    return {message->stream, channel::decode_fields(message->payload).value_or(Fields{})};
  }
  static Fields answer_of(const std::optional<Message>& message) {
    if (!message || message->type != Type::answer) return {};
    return channel::decode_fields(message->payload).value_or(Fields{});
  }
  std::optional<AgentHarness> agent_;
};

TEST_F(AgentFreezeTest, UserProcessesStandStillBetweenPreparedAndResume) {
  if (!agent_->has_cgroup())
    GTEST_SKIP() << "no writable cgroup v2 here: the freezer is not tested";
  const std::string file = agent_->folder() + "/count";
  agent_->open_shell("while :; do echo x >> " + file + "; done");
  struct stat status {};
  for (int i = 0; i < 500 && stat(file.c_str(), &status) != 0; ++i) usleep(20'000);
  Fields prepared = prepare();
  // A machine so busy that a process does not stop in time is no error of the agent.
  ASSERT_EQ(prepared["held"], "1") << prepared["why"];
  ASSERT_EQ(stat(file.c_str(), &status), 0);
  const off_t before = status.st_size;
  usleep(200'000);
  ASSERT_EQ(stat(file.c_str(), &status), 0);
  EXPECT_EQ(status.st_size, before);
  const Fields ready = resume({{"changed", "0"}});
  EXPECT_EQ(field(ready, "identity"), "none");
  for (int i = 0; i < 500 && status.st_size == before; ++i) {
    usleep(20'000);
    stat(file.c_str(), &status);
  }
  EXPECT_GT(status.st_size, before);
}

TEST_F(AgentFreezeTest, SendsNothingWhilePrepared) {
  agent_->open_shell("while :; do echo x; sleep 0.01; done");
  ASSERT_TRUE(agent_->expect(Type::data));
  auto local = agent_->connect();
  agent_->send(Type::prepare, 0, "");
  while (const auto message = agent_->receive()) {
    if (message->type == Type::prepared) break;
  }
  local.send(Type::call, 1, Fields{{"call", "info"}});
  EXPECT_FALSE(agent_->receive(300));
  resume({{"changed", "0"}});
  EXPECT_EQ(next_call().second["call"], "info");
  EXPECT_TRUE(agent_->expect(Type::data)) << "the parent's stream goes on";
}

TEST_F(AgentFreezeTest, ACloneBecomesWhoTheHostSays) {
  EXPECT_EQ(agent_
                ->shell("ip link add snowtest0 type veth peer name snowtest1 && "
                        "ip link set snowtest1 addrgenmode none && "
                        "cat /sys/class/net/snowtest0/type")
                .out,
            "1\n");
  const std::string hook = agent_->etc_path() + "/snow/fork.d/10-note";
  ASSERT_EQ(
      replace_file(
          hook, "#!/bin/sh\necho $SNOW_INDEX $PARAM_A $B > " + agent_->folder() + "/hook\n", 0755),
      0);
  ASSERT_EQ(replace_file(agent_->etc_path() + "/snow/fork.d/20-fails", "#!/bin/sh\nexit 4\n", 0755),
            0);
  prepare();
  std::string entropy;
  for (int i = 0; i < 64; ++i) entropy += static_cast<char>(rand());
  const Fields ready = resume({{"index", "3"},
                               {"count", "8"},
                               {"name", "web-3"},
                               {"id", "vm3"},
                               {"hostname", "web-3"},
                               {"machine_id", "new"},
                               {"uuid", "AABBCCDD-0011-2233-4455-66778899aabb"},
                               {"mac", "52:54:00:aa:bb:cc"},
                               {"entropy", entropy},
                               {"wall_ns", "1000000000000000000"},
                               {"param.A", "b"},
                               {"env.B", "it's"}});
  EXPECT_EQ(field(ready, "reseeded"), "ok");
  // The test takes the right to set the clock away: the step fails, and the agent says so.
  EXPECT_EQ(field(ready, "clock"), "Operation not permitted");
  EXPECT_EQ(field(ready, "identity"), "ok");
  EXPECT_EQ(field(ready, "hooks"), "20-fails: exit 4");
  for (const char* key :
       {"entropy_us", "clock_us", "identity_us", "hooks_us", "wait_us", "held_us"}) {
    EXPECT_TRUE(channel::number_field(ready, key)) << key;
  }
  EXPECT_EQ(agent_->shell("uname -n; cat /etc/hostname /etc/machine-id; echo $B").out,
            "web-3\nweb-3\naabbccdd00112233445566778899aabb\nit's\n");
  EXPECT_EQ(read_small_file(agent_->folder() + "/hook"), "3 b it's\n");
  const std::string params = read_small_file(agent_->run_path() + "/params").value_or("");
  EXPECT_NE(params.find("SNOW_INDEX=3\n"), std::string::npos);
  EXPECT_NE(params.find("SNOW_COUNT=8\n"), std::string::npos);
  EXPECT_EQ(agent_->shell(". " + agent_->run_path() + "/env; echo \"$B\"").out, "it's\n");
  EXPECT_NE(agent_->shell("cat /sys/class/net/snowtest*/address").out.find("52:54:00:aa:bb:cc\n"),
            std::string::npos);
}

TEST_F(AgentFreezeTest, TheParentKeepsItsNameAndStreams) {
  const auto stream = agent_->open_shell("read line; echo got $line");
  prepare();
  const Fields ready = resume({{"index", "0"}, {"count", "1"}});
  EXPECT_EQ(field(ready, "identity"), "ok");
  agent_->send(Type::data, stream, std::string("\0hello\n", 7));
  EXPECT_EQ(agent_->finish(stream).out, "got hello\n");
  EXPECT_EQ(agent_->shell("uname -n").out, "before\n");
}

TEST_F(AgentFreezeTest, ACloneIsSilentAboutTheParentsStreams) {
  const std::string done = agent_->folder() + "/done";
  const auto stream =
      agent_->open_shell("echo $$; sleep 0.2; head -c 500000 /dev/zero; touch " + done);
  ASSERT_TRUE(agent_->expect(Type::data));
  prepare();
  resume({{"index", "1"}});
  for (int i = 0; i < 500 && access(done.c_str(), F_OK) != 0; ++i) usleep(20'000);
  EXPECT_EQ(access(done.c_str(), F_OK), 0) << "the program should run on, its output lost";
  while (const auto message = agent_->receive(200)) EXPECT_NE(message->stream, stream);
  // The clone's host begins its numbers anew.
  EXPECT_EQ(agent_->shell("echo alive").out, "alive\n");
}

TEST_F(AgentFreezeTest, AnswersTheCloneCallFromResume) {
  for (const char* index : {"0", "2"}) {
    auto cloner = agent_->connect();
    auto other = agent_->connect();
    cloner.send(Type::call, 1, Fields{{"call", "clone"}, {"ticket", "t1"}});
    const auto [stream, call] = next_call();
    EXPECT_EQ(field(call, "ticket"), "t1");
    other.send(Type::call, 9, Fields{{"call", "join"}, {"ticket", "t0"}});
    EXPECT_EQ(next_call().second["call"], "join");
    prepare();
    resume({{"index", index}, {"ticket", "t1"}, {"call", std::to_string(stream)}});
    Fields answer = answer_of(cloner.receive());
    EXPECT_EQ(answer["code"], "ok");
    EXPECT_EQ(answer["index"], index);
    if (std::string(index) == "2") {
      EXPECT_EQ(answer_of(other.receive())["code"], "wrong_state");
    } else {
      EXPECT_FALSE(other.receive(100)) << "the parent's other calls wait on";
    }
  }
}

TEST_F(AgentFreezeTest, ACheckpointCallIsAnsweredByTheHostInTheParentAndByResumeInAClone) {
  auto program = agent_->connect();
  program.send(Type::call, 1, Fields{{"call", "checkpoint"}});
  const uint32_t stream = next_call().first;
  prepare();
  resume({{"index", "0"}, {"call", std::to_string(stream)}});
  agent_->send(Type::answer, stream, Fields{{"code", "ok"}, {"checkpoint", "c1"}});
  EXPECT_EQ(answer_of(program.receive())["checkpoint"], "c1");
  program.send(Type::call, 2, Fields{{"call", "checkpoint"}});
  const uint32_t second = next_call().first;
  // Another program's, that waits: it is not in a clone of its own checkpoint.
  auto other = agent_->connect();
  other.send(Type::call, 1, Fields{{"call", "checkpoint"}});
  next_call();
  prepare();
  resume({{"index", "4"}, {"call", std::to_string(second)}});
  EXPECT_EQ(answer_of(program.receive())["index"], "4");
  EXPECT_EQ(answer_of(other.receive())["code"], "wrong_state");
}

TEST_F(AgentFreezeTest, ANewHostIsNotHeldToWhatItsPredecessorHadOpen) {
  const std::string file = agent_->folder() + "/beats";
  agent_->open_shell("while :; do echo x >>" + file + "; sleep 0.02; done");
  auto program = agent_->connect();
  program.send(Type::call, 1, Fields{{"call", "join"}, {"ticket", "t1"}});
  next_call();
  agent_->send(Type::ask, 0, "");
  agent_->expect(Type::hello);
  EXPECT_EQ(answer_of(program.receive())["code"], "unavailable");
  // The new host's numbers begin anew; the program that runs is not touched by them.
  EXPECT_EQ(agent_->shell("echo alive").out, "alive\n");
  struct stat status {};
  for (int i = 0; i < 500 && stat(file.c_str(), &status) != 0; ++i) usleep(20'000);
  const off_t before = status.st_size;
  for (int i = 0; i < 500 && status.st_size == before; ++i) {
    usleep(20'000);
    stat(file.c_str(), &status);
  }
  EXPECT_GT(status.st_size, before);
}

TEST_F(AgentFreezeTest, RelaysPayloadsBothWays) {
  auto program = agent_->connect();
  program.send(Type::call, 5, Fields{{"call", "join"}, {"ticket", "t"}});
  const uint32_t stream = next_call().first;
  EXPECT_EQ(stream % 2, 1u);
  agent_->send(Type::answer, stream, Fields{{"code", "ok"}, {"count", "1"}, {"0.size", "5"}});
  agent_->send(Type::data, stream, "\1hello");
  agent_->send(Type::eof, stream, "\1");
  EXPECT_EQ(answer_of(program.receive())["0.size"], "5");
  const auto data = program.receive();
  ASSERT_TRUE(data);
  EXPECT_EQ(data->stream, 5u);
  EXPECT_EQ(data->payload, "\1hello");
  EXPECT_EQ(program.receive()->type, Type::eof);

  program.send(Type::call, 6, Fields{{"call", "exit"}, {"status", "3"}});
  const uint32_t exit_stream = next_call().first;
  program.send(Type::data, 6, "\1result");
  program.send(Type::eof, 6, "\1");
  EXPECT_EQ(agent_->expect(Type::data)->payload, "\1result");
  EXPECT_EQ(agent_->expect(Type::eof)->stream, exit_stream);
}

TEST_F(AgentFreezeTest, TellsTheHostThatACallerIsGone) {
  uint32_t stream = 0;
  {
    auto program = agent_->connect();
    program.send(Type::call, 1, Fields{{"call", "join"}, {"ticket", "t"}});
    stream = next_call().first;
  }
  EXPECT_EQ(agent_->expect(Type::closed)->stream, stream);
}

TEST_F(AgentFreezeTest, CutsOffProgramsThatBreakTheRules) {
  auto garbage = agent_->connect();
  garbage.send_raw("GET / HTTP/1.0\r\n\r\n");
  EXPECT_TRUE(garbage.closed_by_agent());
  auto host_like = agent_->connect();
  host_like.send(Type::call, 1, Fields{{"call", "info"}});
  next_call();
  host_like.send(Type::open, 1, Fields{{"kind", "exec"}});
  EXPECT_TRUE(host_like.closed_by_agent());
  auto flood = agent_->connect();
  flood.send(Type::call, 1, Fields{{"call", "exit"}, {"status", "0"}});
  next_call();
  const std::string piece(32 * 1024, 'x');
  for (int i = 0; i < 10; ++i) flood.send(Type::data, 1, "\1" + piece);
  EXPECT_TRUE(flood.closed_by_agent());
  auto greedy = agent_->connect();
  for (uint32_t i = 0; i < 9; ++i) greedy.send(Type::call, i, Fields{{"call", "info"}});
  EXPECT_EQ(answer_of(greedy.receive())["code"], "no_room");
  EXPECT_EQ(agent_->shell("echo alive").out, "alive\n");
}

}  // namespace
}  // namespace snow::guest
