// The real agent, driven as the host drives it: programs and files.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest/agent/agent_harness.h"

namespace snow::guest {
namespace {

using channel::Fields;
using channel::Type;

class AgentTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = AgentHarness::missing(); !why.empty()) GTEST_SKIP() << why;
    agent_.emplace();
    hello_ = agent_->expect_fields(Type::hello).value_or(Fields{});
  }
  std::optional<AgentHarness> agent_;
  Fields hello_;
};

TEST_F(AgentTest, SaysHelloAtStartAndWhenAsked) {
  EXPECT_EQ(hello_["version"], "1");
  EXPECT_EQ(hello_["boot_id"].size(), 36u);
  agent_->send(Type::ask, 0, "");
  EXPECT_EQ(agent_->expect_fields(Type::hello), hello_);
}

TEST_F(AgentTest, RunsAProgramAndKeepsItsOutputsApart) {
  const auto result = agent_->shell("echo out; echo err >&2; cat; exit 7", "input");
  EXPECT_EQ(result.out, "out\ninput");
  EXPECT_EQ(result.err, "err\n");
  EXPECT_EQ(result.code, "ok");
  EXPECT_EQ(result.exit, 7);
}

TEST_F(AgentTest, HasTheExitCodesOfAShell) {
  const auto missing = agent_->finish(
      agent_->open({{"kind", "exec"}, {"argc", "1"}, {"argv.0", "/no/such/program"}}));
  EXPECT_EQ(missing.exit, 127);
  EXPECT_EQ(missing.err, "snow-agent: /no/such/program: No such file or directory\n");
  const auto not_executable =
      agent_->finish(agent_->open({{"kind", "exec"}, {"argc", "1"}, {"argv.0", "/etc/passwd"}}));
  EXPECT_EQ(not_executable.exit, 126);
  EXPECT_EQ(agent_->shell("kill -TERM $$").exit, 128 + SIGTERM);
}

TEST_F(AgentTest, SetsEnvironmentDirectoryAndUser) {
  const auto result = agent_->finish(agent_->open_shell(
      "echo $GREETING $HOME; pwd; id -un; id -u; cat /proc/self/cgroup | tail -n 1",
      {{"env.GREETING", "good day"}, {"directory", "/usr"}, {"user", "nobody"}}));
  EXPECT_EQ(result.out.find("good day /nonexistent\n/usr\nnobody\n65534\n"), 0u) << result.out;
  if (agent_->has_cgroup()) {
    EXPECT_NE(result.out.find("/snow-exec"), std::string::npos);
  }
  const auto unknown = agent_->finish(agent_->open_shell("true", {{"user", "nobody-here"}}));
  EXPECT_EQ(unknown.code, "not_found");
}

TEST_F(AgentTest, GivesATerminalWithASize) {
  const auto stream = agent_->open_shell("stty size; read answer; stty size; echo got $answer",
                                         {{"terminal", "1"}, {"rows", "33"}, {"columns", "111"}});
  const auto first = agent_->expect(Type::data);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->payload,
            "\x01"
            "33 111\r\n");
  agent_->send(Type::resize, stream, Fields{{"rows", "44"}, {"columns", "22"}});
  agent_->send(Type::data, stream, std::string("\0yes\r", 5));
  const auto result = agent_->finish(stream);
  EXPECT_NE(result.out.find("44 22\r\ngot yes\r\n"), std::string::npos) << result.out;
  EXPECT_EQ(result.exit, 0);
}

TEST_F(AgentTest, SendsSignalsToTheGroup) {
  const auto stream =
      agent_->open_shell("trap 'echo caught; exit 3' USR1; echo go; sleep 300 & wait");
  ASSERT_TRUE(agent_->expect(Type::data));
  agent_->send(Type::signal, stream, Fields{{"signal", std::to_string(SIGUSR1)}});
  const auto result = agent_->finish(stream);
  EXPECT_EQ(result.out, "caught\n");
  EXPECT_EQ(result.exit, 3);
}

TEST_F(AgentTest, StopsAtTheEndOfItsCredit) {
  const auto stream = agent_->open_shell("head -c 1000000 /dev/zero");
  size_t bytes = 0;
  while (bytes < channel::kWindowBytes) {
    const auto message = agent_->expect(Type::data);
    ASSERT_TRUE(message);
    bytes += message->payload.size() - 1;
  }
  EXPECT_EQ(bytes, channel::kWindowBytes);
  EXPECT_FALSE(agent_->receive(300)) << "sent beyond its credit";
  agent_->credit(stream, 1'000'000);
  const auto rest = agent_->finish(stream);
  EXPECT_EQ(bytes + rest.out.size(), 1'000'000u);
  EXPECT_EQ(rest.exit, 0);
}

TEST_F(AgentTest, GivesCreditOnlyForWhatTheProgramTook) {
  const auto stream = agent_->open_shell("read line; sleep 300");
  const std::string chunk(32 * 1024, '\n');
  for (uint32_t sent = 0; sent < channel::kWindowBytes; sent += 32 * 1024) {
    agent_->send(Type::data, stream, std::string(1, '\0') + chunk);
  }
  size_t given = 0;
  while (const auto message = agent_->receive(500)) {
    if (message->type == Type::credit) {
      given += static_cast<uint8_t>(message->payload[1]) * 256u +
               static_cast<uint8_t>(message->payload[2]) * 65536u;
    }
  }
  EXPECT_LE(given, 128u * 1024) << "more than a pipe holds was taken";
  agent_->send(Type::closed, stream, "");
  EXPECT_EQ(agent_->shell("echo alive").out, "alive\n");
}

TEST_F(AgentTest, EndsAStreamWhoseDescendantsKeepThePipe) {
  const auto result = agent_->shell("sleep 300 & echo $!");
  EXPECT_EQ(result.exit, 0);
  EXPECT_EQ(kill(atoi(result.out.c_str()), SIGKILL), 0) << "the descendant should live";
}

TEST_F(AgentTest, ClosingAStreamKillsItsProgram) {
  const auto stream = agent_->open_shell("echo $$; sleep 300");
  const auto message = agent_->expect(Type::data);
  ASSERT_TRUE(message);
  const pid_t pid = atoi(message->payload.c_str() + 1);
  agent_->send(Type::closed, stream, "");
  for (int i = 0; i < 500 && kill(pid, 0) == 0; ++i) usleep(20'000);
  EXPECT_NE(kill(pid, 0), 0);
}

TEST_F(AgentTest, CarriesFilesBothWays) {
  const std::string path = agent_->folder() + "/file";
  std::string content;
  for (int64_t i = 0; i < 100'000; ++i) content += std::to_string(i * i);
  const auto stream = agent_->open({{"kind", "write"}, {"path", path}, {"mode", "0640"}});
  uint64_t credit = channel::kWindowBytes;
  for (size_t at = 0; at < content.size(); at += 32 * 1024) {
    const std::string piece = content.substr(at, 32 * 1024);
    while (credit < piece.size()) {
      const auto message = agent_->expect(Type::credit);
      ASSERT_TRUE(message);
      for (size_t i = 0; i < 4; ++i) credit += uint64_t{uint8_t(message->payload[i])} << (8 * i);
    }
    credit -= piece.size();
    agent_->send(Type::data, stream, std::string(1, '\0') + piece);
  }
  EXPECT_NE(access(path.c_str(), F_OK), 0) << "in place before it is whole";
  agent_->send(Type::eof, stream, std::string(1, '\0'));
  EXPECT_EQ(agent_->finish(stream).code, "ok");
  struct stat status {};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0640u);
  const auto back = agent_->finish(agent_->open({{"kind", "read"}, {"path", path}}));
  EXPECT_EQ(back.code, "ok");
  EXPECT_TRUE(back.out == content);
}

TEST_F(AgentTest, LeavesNoHalfWrittenFile) {
  const std::string folder = agent_->folder() + "/files";
  mkdir(folder.c_str(), 0755);
  const auto stream = agent_->open({{"kind", "write"}, {"path", folder + "/file"}});
  agent_->send(Type::data, stream, std::string("\0half", 5));
  agent_->send(Type::closed, stream, "");
  EXPECT_EQ(agent_->shell("ls -A " + folder).out, "");
}

TEST_F(AgentTest, NamesWhatIsWrongWithAFile) {
  const auto code = [&](Fields fields) { return agent_->finish(agent_->open(fields)).code; };
  EXPECT_EQ(code({{"kind", "read"}, {"path", "/no/such"}}), "not_found");
  EXPECT_EQ(code({{"kind", "read"}, {"path", "/usr"}}), "invalid");
  EXPECT_EQ(code({{"kind", "write"}, {"path", "/usr"}}), "invalid");
  EXPECT_EQ(code({{"kind", "write"}, {"path", "/dev/null"}}), "invalid");
  EXPECT_EQ(code({{"kind", "write"}, {"path", "/no/such/folder/x"}}), "not_found");
  EXPECT_EQ(code({{"kind", "nonsense"}}), "invalid");
  EXPECT_EQ(code({{"kind", "exec"}}), "invalid");
}

TEST_F(AgentTest, OutlivesGarbageAndTellsItsVersion) {
  agent_->send_raw(std::string(200'000, 'x') + std::string("\0\1\2\3\0", 5));
  std::string foreign = channel::encode_message({Type::ask, 0, ""});
  foreign.resize(foreign.size() - 4);
  foreign[0] = 9;
  const uint32_t crc = channel::crc32c(foreign);
  for (int i = 0; i < 4; ++i) foreign.push_back(static_cast<char>((crc >> (8 * i)) & 0xff));
  agent_->send_raw(channel::cobs_encode(foreign) + std::string(1, '\0'));
  EXPECT_TRUE(agent_->expect(Type::refused));
  EXPECT_EQ(agent_->shell("echo alive").out, "alive\n");
}

}  // namespace
}  // namespace snow::guest
