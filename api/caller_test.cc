#include "api/caller.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/fsuid.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/file.h"

namespace snow {
namespace {

class CallerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/snow-caller-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    ASSERT_EQ(::chmod(folder, 0755), 0);
    secret_ = folder_ + "/secret";
    shown_ = folder_ + "/shown";
    ASSERT_TRUE(write_file(secret_, "secret", 0600));
    ASSERT_TRUE(write_file(shown_, "shown", 0644));
    ASSERT_EQ(::chmod(shown_.c_str(), 0644), 0);
  }
  void TearDown() override { remove_all(folder_); }

  std::string folder_, secret_, shown_;
};

TEST_F(CallerTest, OpensWhatTheCallerMayRead) {
  const auto file = open_as(Caller{::geteuid(), ::getegid(), ::getpid()}, secret_);
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->name, secret_);
  EXPECT_EQ(read_file(file->path).value(), "secret");
}

TEST_F(CallerTest, RefusesWhatTheCallerMayNotRead) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root: acts as another user";
  const Caller nobody{65534, 65534, 0};
  EXPECT_EQ(open_as(nobody, secret_).error().code, Code::denied);
  const auto shown = open_as(nobody, shown_);
  ASSERT_TRUE(shown) << shown.error().message;
  EXPECT_EQ(read_file(shown->path).value(), "shown");
  // Root's own rights are back.
  EXPECT_EQ(::setfsuid(static_cast<uid_t>(-1)), 0);
  EXPECT_TRUE(read_file(secret_));
}

TEST_F(CallerTest, TheFileThatWasCheckedIsTheOneThatIsRead) {
  const auto file = open_as(Caller{::geteuid(), ::getegid(), ::getpid()}, shown_);
  ASSERT_TRUE(file);
  ASSERT_EQ(::rename(secret_.c_str(), shown_.c_str()), 0);
  EXPECT_EQ(read_file(file->path).value(), "shown");
}

TEST_F(CallerTest, RefusesWhatIsNoFile) {
  const Caller self{::geteuid(), ::getegid(), ::getpid()};
  EXPECT_EQ(open_as(self, folder_ + "/missing").error().code, Code::not_found);
  EXPECT_EQ(open_as(self, folder_).error().code, Code::invalid);
  EXPECT_EQ(open_as(self, "relative").error().code, Code::invalid);
  const std::string pipe = folder_ + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(open_as(self, pipe).error().code, Code::invalid);
}

TEST_F(CallerTest, PeerOfASocket) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const Fd a(pair[0]);
  const Fd b(pair[1]);
  const auto caller = caller_of(a.get());
  ASSERT_TRUE(caller);
  EXPECT_EQ(caller->uid, ::geteuid());
  EXPECT_EQ(caller->pid, ::getpid());
}

}  // namespace
}  // namespace snow
