// QMP against the real QEMU, and against a peer that says what no QEMU should.
#include "qemu/qmp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <future>
#include <thread>

#include "base/fd.h"
#include "qemu/jail_files.h"
#include "qemu/qmp_parser.h"
#include "qemu/test_qemu.h"

namespace snow {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing::TestFolder;
using testing::TestQemu;

// Greets, answers qmp_capabilities, then says whatever a test tells it to.
class Peer {
 public:
  Peer() {
    listener_ = *listen_unix(path());
    accepted_ = std::async(std::launch::async, [this] {
      Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      send(fd, R"({"QMP": {"version": {}, "capabilities": []}})");
      receive(fd);
      send(fd, R"({"return": {}, "id": 1})");
      return fd;
    });
    qmp_ = std::move(Qmp::connect(path(), 60'000, {}).value());
    fd_ = accepted_.get();
  }
  static void send(const Fd& fd, const std::string& line) {
    const std::string text = line + "\n";
    ASSERT_TRUE(write_all(fd.get(), std::as_bytes(std::span(text)), "peer"));
  }
  static json receive(const Fd& fd) {
    std::string line;
    char byte = 0;
    while (read(fd.get(), &byte, 1) == 1 && byte != '\n') line += byte;
    return json::parse(line, nullptr, false);
  }
  void send(const std::string& line) { send(fd_, line); }
  json receive() { return receive(fd_); }
  void hang_up() { fd_.reset(); }
  Qmp& qmp() { return *qmp_; }

 private:
  [[nodiscard]] std::string path() const { return folder_(JailPaths::kQmp); }
  TestFolder folder_;
  Fd listener_;
  std::future<Fd> accepted_;
  std::unique_ptr<Qmp> qmp_;
  Fd fd_;
};

TEST(Qmp, RealQemu) {
  const TestFolder folder;
  MachineConfig config;
  config.machine = MachineType::q35;
  config.memory_bytes = 32u << 20;
  folder.make_sparse(JailPaths::kMemory, config.memory_bytes);
  TestQemu qemu(folder, config, Launch::Kind::boot);
  ASSERT_TRUE(qemu.connected()) << qemu.log();
  EXPECT_EQ(qemu.qmp().execute("query-status").value()["running"], false);
  const auto unknown = qemu.qmp().execute("no-such-command");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, Code::host_failed);
  EXPECT_THAT(unknown.error().message, HasSubstr("no-such-command has not been found"));

  const auto watch = qemu.qmp().watch("RESUME");
  ASSERT_TRUE(qemu.qmp().execute("cont"));
  EXPECT_TRUE(watch->next(60'000));
  // It came before anybody asked for events, and is delivered all the same.
  std::vector<std::string> events;
  qemu.qmp().on_event([&](const json& event) { events.push_back(event["event"]); });
  EXPECT_THAT(events, ::testing::Contains("RESUME"));

  std::promise<void> closed;
  qemu.qmp().on_close([&] { closed.set_value(); });
  qemu.kill_now();
  EXPECT_EQ(closed.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_EQ(qemu.qmp().execute("query-status").error().code, Code::guest_failed);
}

TEST(Qmp, QemuThatDiesAtItsStartIsReportedAtOnce) {
  const TestFolder folder;
  MachineConfig config;  // a microvm without its files
  config.has_kernel = true;
  TestQemu qemu(folder, config, Launch::Kind::boot);
  EXPECT_FALSE(qemu.connected());
  EXPECT_THAT(qemu.log(), HasSubstr("QEMU died at its start"));
}

TEST(Qmp, CommandsFromManyThreads) {
  Peer peer;
  constexpr int kCommands = 40;
  std::vector<std::future<Result<json>>> answers;
  for (int i = 0; i < kCommands; ++i) {
    answers.push_back(std::async(std::launch::async, [&peer, i] {
      return peer.qmp().execute("echo", {{"value", i}}, 60'000);
    }));
  }
  for (int i = 0; i < kCommands; ++i) {
    const json request = peer.receive();
    peer.send(json{{"return", request["arguments"]["value"]}, {"id", request["id"]}}.dump());
  }
  for (int i = 0; i < kCommands; ++i) EXPECT_EQ(answers[static_cast<size_t>(i)].get().value(), i);
}

TEST(Qmp, LateAnswersAreDropped) {
  Peer peer;
  EXPECT_EQ(peer.qmp().execute("slow", {}, 20).error().code, Code::timed_out);
  const json slow = peer.receive();
  auto next =
      std::async(std::launch::async, [&] { return peer.qmp().execute("next", {}, 60'000); });
  const json request = peer.receive();
  peer.send(json{{"return", "late"}, {"id", slow["id"]}}.dump());
  peer.send(json{{"return", "nobody asked"}, {"id", "text"}}.dump());
  peer.send(json{{"return", "right"}, {"id", request["id"]}}.dump());
  EXPECT_EQ(next.get().value(), "right");
}

// A peer that stops reading and answering costs a command its timeout, not more.
TEST(Qmp, PeerThatDoesNotReadIsGivenUp) {
  Peer peer;
  const auto result = peer.qmp().execute("big", {{"text", std::string(4 << 20, 'x')}}, 200);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Code::timed_out) << result.error().message;
}

TEST(Qmp, WhatIsNotQmpClosesTheConnection) {
  for (const std::string& line :
       {std::string("hello"), std::string("[1]"), std::string(100'000, '['),
        "{\"event\": " + std::string(100'000, '{'), std::string("{\"a\": \"\xff\"}")}) {
    Peer peer;
    std::promise<void> closed;
    peer.qmp().on_close([&] { closed.set_value(); });
    peer.send(line);
    EXPECT_EQ(closed.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
    EXPECT_EQ(peer.qmp().execute("stop").error().code, Code::guest_failed);
  }
}

TEST(Qmp, OddMessagesDoNoHarm) {
  Peer peer;
  for (int i = 0; i < 1000; ++i) peer.send(R"({"event": "FLOOD", "data": 7})");
  peer.send(R"({"event": 5})");
  peer.send(R"({"QMP": null})");
  peer.send("{}");
  auto next =
      std::async(std::launch::async, [&] { return peer.qmp().execute("next", {}, 60'000); });
  const json request = peer.receive();
  peer.send(json{{"error", "not an object"}, {"id", request["id"]}}.dump());
  EXPECT_EQ(next.get().error().code, Code::host_failed);
  size_t events = 0;
  peer.qmp().on_event([&](const json&) { ++events; });
  EXPECT_LE(events, 256u);
  EXPECT_GT(events, 200u);
}

TEST(Qmp, HangUpEndsWaiting) {
  Peer peer;
  auto next =
      std::async(std::launch::async, [&] { return peer.qmp().execute("next", {}, 60'000); });
  const auto watch = peer.qmp().watch("NEVER");
  peer.receive();
  peer.hang_up();
  EXPECT_EQ(next.get().error().code, Code::guest_failed);
  EXPECT_EQ(watch->next(60'000).error().code, Code::guest_failed);
}

TEST(QmpParser, MessagesAcrossAnyCut) {
  const std::string text = "{\"a\": 1}\r\n\n{\"b\": \"[[[{\\\"\"}\n{\"c\"";
  for (size_t step = 1; step < text.size(); ++step) {
    QmpParser parser;
    std::vector<json> messages;
    for (size_t at = 0; at < text.size(); at += step)
      ASSERT_TRUE(parser.feed(std::string_view(text).substr(at, step), messages));
    EXPECT_EQ(messages, (std::vector<json>{{{"a", 1}}, {{"b", "[[[{\""}}}));
  }
}

TEST(QmpParser, LongLinesAreRefused) {
  QmpParser parser;
  std::vector<json> messages;
  const std::string piece(1 << 20, 'x');
  for (int i = 0; i < 16; ++i) ASSERT_TRUE(parser.feed(piece, messages));
  EXPECT_EQ(parser.feed(piece, messages).error().code, Code::corrupt);
}

// A guest that has taken over its QEMU points the daemon at somebody else's socket or file.
TEST(JailFiles, LinksAreNotFollowed) {
  const TestFolder folder;
  const Fd other = *listen_unix(folder.path() + "/other.sock");
  ASSERT_TRUE(connect_jail_socket(folder.path() + "/other.sock"));
  std::filesystem::create_symlink(folder.path() + "/other.sock", folder(JailPaths::kIncoming));
  EXPECT_EQ(connect_jail_socket(folder(JailPaths::kIncoming)).error().code, Code::denied);
  EXPECT_EQ(connect_jail_socket(folder.path() + "/none").error().code, Code::unavailable);

  folder.write("/vm/secret", "secret");
  std::filesystem::create_symlink(folder.path() + "/secret", folder(JailPaths::kState));
  EXPECT_FALSE(take_jail_file(folder(JailPaths::kState), 100));
  std::filesystem::remove(folder(JailPaths::kState));
  ASSERT_EQ(mkfifo(folder(JailPaths::kState).c_str(), 0600), 0);
  EXPECT_EQ(take_jail_file(folder(JailPaths::kState), 100).error().code, Code::corrupt);
  EXPECT_EQ(take_jail_file(folder("/vm/secret"), 5).error().code, Code::corrupt);
  EXPECT_EQ(take_jail_file(folder("/vm/secret"), 6).value().size(), 6u);
  EXPECT_FALSE(std::filesystem::exists(folder("/vm/secret")));
}

}  // namespace
}  // namespace snow
