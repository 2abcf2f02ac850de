#include "vm/console.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/test_folder.h"

namespace snow {
namespace {

constexpr int kLongMs = 60'000;

// QEMU's end: listens, takes one connection, prints and reads.
class Serial {
 public:
  explicit Serial(const std::string& path) : path_(path), listener_(listen_unix(path).value()) {}
  void accept() { fd_ = Fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)); }
  void print(std::string_view text) const {
    ASSERT_TRUE(write_all(fd_.get(), std::as_bytes(std::span(text)), "serial"));
  }
  [[nodiscard]] std::string read(size_t count) const {
    std::string text(count, '\0');
    for (size_t done = 0; done < count;) {
      const ssize_t got = ::read(fd_.get(), text.data() + done, count - done);
      if (got <= 0) return text.substr(0, done);
      done += static_cast<size_t>(got);
    }
    return text;
  }
  void close() { fd_.reset(); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  const std::string path_;
  Fd listener_;
  Fd fd_;
};

// Reads until `until` has come.
std::string read_until(Host::ConsoleSession& session, std::string_view until) {
  std::string all;
  while (all.find(until) == std::string::npos) {
    const auto bytes = session.read(kLongMs);
    if (!bytes || bytes->empty()) break;
    all += *bytes;
  }
  return all;
}

class ConsoleTest : public testing::Test {
 protected:
  void SetUp() override {
    hub_ = ConsoleHub::start().value();
    ASSERT_TRUE(hub_->attach("vm1", serial_.path(), log_));
    serial_.accept();
  }
  TestFolder folder_;
  std::string log_ = folder_ / "console.log";
  Serial serial_{folder_ / "console.sock"};
  std::unique_ptr<ConsoleHub> hub_;
};

TEST_F(ConsoleTest, WhatTheGuestPrintsIsKeptAndHandedToAllSessions) {
  auto first = hub_->open("vm1").value();
  auto second = hub_->open("vm1").value();
  serial_.print("login: ");
  EXPECT_EQ(read_until(*first, "login: "), "login: ");
  EXPECT_EQ(read_until(*second, "login: "), "login: ");
  EXPECT_EQ(hub_->log("vm1").value(), "login: ");
  EXPECT_FALSE(first->read(0).has_value());
  ASSERT_TRUE(first->write("root\n"));
  EXPECT_EQ(serial_.read(5), "root\n");
}

TEST_F(ConsoleTest, TheEndIsSeenAndTheLogStays) {
  auto session = hub_->open("vm1").value();
  serial_.print("bye");
  hub_->end("vm1");
  EXPECT_EQ(session->read(kLongMs), "bye");
  EXPECT_EQ(session->read(kLongMs), "");
  EXPECT_EQ(session->write("x").error().code, Code::wrong_state);
  EXPECT_EQ(hub_->open("vm1").error().code, Code::wrong_state);
  EXPECT_EQ(hub_->log("vm1").value(), "bye");
  hub_->forget("vm1");
  EXPECT_EQ(hub_->log("vm1").error().code, Code::not_found);
  EXPECT_EQ(ConsoleHub::read_log(log_), "bye");
}

TEST_F(ConsoleTest, ANewQemuOfTheSameVmTakesOver) {
  auto session = hub_->open("vm1").value();
  serial_.print("old;");
  Serial next(folder_ / "next.sock");
  ASSERT_TRUE(hub_->attach("vm1", next.path(), log_));
  next.accept();
  serial_.close();
  next.print("new;");
  EXPECT_EQ(read_until(*session, "new;"), "old;new;");
  EXPECT_EQ(hub_->log("vm1").value(), "old;new;");
  ASSERT_TRUE(session->write("in"));
  EXPECT_EQ(next.read(2), "in");
}

TEST_F(ConsoleTest, InputWaitsWhileQemuIsReplaced) {
  auto session = hub_->open("vm1").value();
  serial_.close();
  Serial next(folder_ / "next.sock");
  ASSERT_TRUE(session->write("typed"));
  // The closed connection may have taken the input with it: only what is typed once the hub has
  // noticed is promised. What matters is that no session ends and the next connection works.
  ASSERT_TRUE(hub_->attach("vm1", next.path(), log_));
  next.accept();
  ASSERT_TRUE(session->write("\n"));
  std::string input;
  while (input.find('\n') == std::string::npos) input += next.read(1);
  EXPECT_TRUE(input == "\n" || input == "typed\n") << input;
}

TEST_F(ConsoleTest, ALogGoesOnWithTheNextDaemon) {
  serial_.print("one;");
  auto session = hub_->open("vm1").value();
  serial_.print("two;");
  read_until(*session, "two;");
  session.reset();
  hub_.reset();
  auto hub = ConsoleHub::start().value();
  Serial again(folder_ / "again.sock");
  ASSERT_TRUE(hub->attach("vm1", again.path(), log_));
  again.accept();
  session = hub->open("vm1").value();
  again.print("three;");
  read_until(*session, "three;");
  EXPECT_EQ(hub->log("vm1").value(), "one;two;three;");
}

TEST_F(ConsoleTest, AFloodIsBounded) {
  auto slow = hub_->open("vm1").value();
  std::string line(1023, 'x');
  line += '\n';
  for (int i = 0; i < 3000; ++i) serial_.print(line);
  serial_.print("done");
  auto late = hub_->open("vm1").value();
  while (hub_->log("vm1").value().find("done") == std::string::npos) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const std::string log = hub_->log("vm1").value();
  EXPECT_LE(log.size(), ConsoleHub::kLogBytes);
  EXPECT_GE(log.size(), ConsoleHub::kLogBytes / 2);
  EXPECT_TRUE(log.ends_with("done"));
  const std::string seen = slow->read(kLongMs).value();
  EXPECT_LE(seen.size(), ConsoleHub::kSessionBytes + 100);
  EXPECT_NE(seen.find("bytes of output were lost"), std::string::npos);
  EXPECT_TRUE(seen.ends_with("done"));
}

TEST_F(ConsoleTest, AGuestThatDoesNotReadRefusesInput) {
  auto session = hub_->open("vm1").value();
  const std::string chunk(16384, 'i');
  Result<void> written;
  for (int i = 0; i < 1000 && written; ++i) written = session->write(chunk);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, Code::wrong_state);
  // It reads again: input goes on.
  while (!session->write(chunk)) (void)serial_.read(65536);
}

TEST_F(ConsoleTest, SessionsAreCountedAndMayOutliveTheHub) {
  std::vector<std::unique_ptr<Host::ConsoleSession>> sessions;
  for (size_t i = 0; i < ConsoleHub::kSessions; ++i) {
    sessions.push_back(hub_->open("vm1").value());
  }
  EXPECT_EQ(hub_->open("vm1").error().code, Code::no_room);
  sessions.pop_back();
  sessions.push_back(hub_->open("vm1").value());
  std::thread reader([&] { EXPECT_EQ(sessions[0]->read(-1), ""); });
  hub_.reset();
  reader.join();
  EXPECT_EQ(sessions[1]->read(0), "");
}

TEST_F(ConsoleTest, NobodyListens) {
  EXPECT_EQ(hub_->attach("vm2", folder_ / "none.sock", folder_ / "l").error().code,
            Code::unavailable);
  EXPECT_EQ(hub_->open("vm2").error().code, Code::not_found);
  hub_->end("vm2");
  hub_->forget("vm2");
}

}  // namespace
}  // namespace snow
