// The link against the real snow-agent, over a socket in place of the virtio port. The agent gets
// no cgroup and is never told to become somebody else: this machine stays as it is.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "guestlink/link.h"
#include "guestlink/link_peer.h"

namespace snow {
namespace {

class AgentTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "the agent runs programs as other users: needs root";
    link_ = GuestLink::connect(peer_.path(), seen_.callbacks()).value();
    peer_.accept();
    const std::string port = "fd:" + std::to_string(peer_.fd());
    const std::string run = peer_.path().substr(0, peer_.path().rfind('/')) + "/run";
    agent_ = ::fork();
    if (agent_ == 0) {
      ::fcntl(peer_.fd(), F_SETFD, 0);
      ::execl(SNOW_AGENT_PATH, "snow-agent", "--port", port.c_str(), "--cgroup-root", "none",
              "--run", run.c_str(), nullptr);
      ::_exit(127);
    }
    peer_.close();  // the agent's now
    const auto there = link_->wait_for_agent(kLongMs);
    ASSERT_TRUE(there) << there.error().message;
  }
  void TearDown() override {
    link_.reset();
    GuestLink::settle();
    if (agent_ <= 0) return;
    ::kill(agent_, SIGTERM);
    ::waitpid(agent_, nullptr, 0);
  }
  static std::string drain(GuestStream& stream, int fd = 1) {
    std::string all;
    for (;;) {
      const auto chunk = stream.read(kLongMs);
      if (!chunk || chunk->end) return all;
      if (chunk->fd == fd) all += chunk->bytes;
    }
  }
  Seen seen_;
  Peer peer_;
  std::unique_ptr<GuestLink> link_;
  pid_t agent_ = 0;
};

TEST_F(AgentTest, RunsACommandWithInputAndEnvironment) {
  auto stream =
      link_
          ->exec({.argv = {"sh", "-c", "cat; echo $WORD; exit 7"}, .environment = {{"WORD", "hi"}}})
          .value();
  ASSERT_TRUE(stream->write("input "));
  ASSERT_TRUE(stream->write_eof());
  EXPECT_EQ(drain(*stream), "input hi\n");
  EXPECT_EQ(stream->outcome().value(), 7);
  auto missing = link_->exec({.argv = {"no-such-command"}}).value();
  drain(*missing);
  EXPECT_FALSE(missing->outcome() && missing->outcome().value() == 0);
}

TEST_F(AgentTest, MovesManyWindowsBothWays) {
  auto stream = link_->exec({.argv = {"cat"}}).value();
  std::string sent(8u << 20, '\0');
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 131 >> 7);
  std::thread writer([&] {
    EXPECT_TRUE(stream->write(sent));
    EXPECT_TRUE(stream->write_eof());
  });
  const std::string got = drain(*stream);
  writer.join();
  EXPECT_TRUE(got == sent);
  EXPECT_EQ(stream->outcome().value(), 0);
}

TEST_F(AgentTest, CopiesFiles) {
  const std::string path = peer_.path() + ".copy";
  auto write = link_->write_file(path, 0640).value();
  ASSERT_TRUE(write->write("content"));
  ASSERT_TRUE(write->write_eof());
  EXPECT_TRUE(write->read(kLongMs)->end);
  EXPECT_TRUE(write->outcome()) << write->outcome().error().message;
  auto read = link_->read_file(path).value();
  EXPECT_EQ(drain(*read), "content");
  auto missing = link_->read_file("/no/such/file").value();
  drain(*missing);
  EXPECT_EQ(missing->outcome().error().code, Code::not_found);
}

TEST_F(AgentTest, AFreezeThatIsGivenUp) {
  auto stream = link_->exec({.argv = {"cat"}}).value();
  const auto prepared = link_->prepare(kLongMs);
  ASSERT_TRUE(prepared) << prepared.error().message;
  EXPECT_EQ(channel::field(*prepared, "held"), "0");  // it has no cgroup here
  Identity same;
  same.changed = false;
  ASSERT_TRUE(link_->resume(same, kLongMs));
  ASSERT_TRUE(stream->write("on"));
  ASSERT_TRUE(stream->write_eof());
  EXPECT_EQ(drain(*stream), "on");
}

TEST_F(AgentTest, ItsEndIsSeen) {
  auto stream = link_->exec({.argv = {"cat"}}).value();
  ::kill(agent_, SIGKILL);
  EXPECT_TRUE(stream->read(kLongMs)->end);
  EXPECT_EQ(stream->outcome().error().code, Code::guest_failed);
  EXPECT_TRUE(seen_.wait_closed());
}

}  // namespace
}  // namespace snow
