// The other end of a guest link for tests: QEMU's listening socket and an agent that says what the
// test tells it to.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/file.h"
#include "guest/channel/message.h"
#include "guestlink/link.h"
#include "guestlink/wire_text.h"

namespace snow {

inline constexpr int kLongMs = 60'000;

class Peer {
 public:
  Peer() {
    char name[] = "/tmp/snow-link-XXXXXX";
    if (::mkdtemp(name) == nullptr) std::abort();
    folder_ = name;
    listener_ = listen_unix(path()).value();
  }
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  ~Peer() { remove_all(folder_); }

  [[nodiscard]] std::string path() const { return folder_ + "/agent.sock"; }
  void accept() { fd_ = Fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)); }
  void close() { fd_.reset(); }

  void raw(std::string_view bytes) const {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(sent));
    }
  }
  void send(channel::Type type, uint32_t stream, const std::string& payload) const {
    raw(channel::encode_frame({type, stream, payload}));
  }
  void send(channel::Type type, uint32_t stream, const channel::Fields& fields) const {
    send(type, stream, channel::encode_fields(fields));
  }
  void data(uint32_t stream, int fd, const std::string& bytes) const {
    send(channel::Type::data, stream, std::string(1, static_cast<char>(fd)) + bytes);
  }
  void credit(uint32_t stream, uint32_t bytes) const {
    send(channel::Type::credit, stream, little_endian(bytes));
  }
  void hello() const {
    send(channel::Type::hello, 0, channel::Fields{{"version", "1"}, {"agent", "test"}});
  }

  // The next message; `ask` is left out unless asked for. Type 0: none within `timeout_ms`.
  channel::Message next(int timeout_ms = kLongMs, bool asks = false) {
    for (;;) {
      while (!messages_.empty()) {
        channel::Message message = std::move(messages_.front());
        messages_.pop_front();
        if (asks || message.type != channel::Type::ask) return message;
      }
      pollfd polled{fd_.get(), POLLIN, 0};
      if (::poll(&polled, 1, timeout_ms) <= 0) return {};
      char buffer[65536];
      const ssize_t got = ::read(fd_.get(), buffer, sizeof buffer);
      if (got <= 0) return {};
      std::vector<channel::Message> messages;
      reader_.feed({buffer, static_cast<size_t>(got)}, messages);
      messages_.insert(messages_.end(), messages.begin(), messages.end());
    }
  }
  channel::Message expect(channel::Type type) {
    channel::Message message = next();
    EXPECT_EQ(static_cast<int>(message.type), static_cast<int>(type));
    return message;
  }
  static channel::Fields fields(const channel::Message& message) {
    return channel::decode_fields(message.payload).value_or(channel::Fields{{"malformed", "1"}});
  }
  [[nodiscard]] uint64_t dropped() const { return reader_.dropped(); }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  std::string folder_;
  Fd listener_;
  Fd fd_;
  channel::FrameReader reader_;
  std::deque<channel::Message> messages_;
};

// Counts and keeps what the callbacks bring.
struct Seen {
  std::mutex mutex;
  std::condition_variable changed;
  int hellos = 0;
  bool closed = false;
  std::deque<std::shared_ptr<GuestCall>> calls;

  GuestLink::Callbacks callbacks() {
    return {.on_hello =
                [this] {
                  const std::lock_guard lock(mutex);
                  ++hellos;
                  changed.notify_all();
                },
            .on_call =
                [this](std::shared_ptr<GuestCall> call) {
                  const std::lock_guard lock(mutex);
                  calls.push_back(std::move(call));
                  changed.notify_all();
                },
            .on_closed =
                [this] {
                  const std::lock_guard lock(mutex);
                  closed = true;
                  changed.notify_all();
                }};
  }
  std::shared_ptr<GuestCall> next_call() {
    std::unique_lock lock(mutex);
    if (!changed.wait_for(lock, std::chrono::milliseconds(kLongMs), [&] { return !calls.empty(); }))
      return nullptr;
    auto call = std::move(calls.front());
    calls.pop_front();
    return call;
  }
  bool wait_closed() {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::milliseconds(kLongMs), [&] { return closed; });
  }
};

// A connected link whose agent has said hello.
class LinkTest : public testing::Test {
 protected:
  void SetUp() override {
    link_ = GuestLink::connect(peer_.path(), seen_.callbacks()).value();
    peer_.accept();
    peer_.hello();
    ASSERT_TRUE(link_->wait_for_agent(kLongMs));
  }
  void TearDown() override {
    link_.reset();
    GuestLink::settle();
  }
  // Everything that was sent before has been handled when this returns.
  void sync() {
    const uint64_t before = link_->dropped_frames();
    peer_.send(channel::Type::ask, 0, std::string());  // only a host may say that: counted
    while (link_->dropped_frames() == before) ::usleep(1000);
  }
  std::unique_ptr<GuestStream> exec(uint32_t& number) {
    auto stream = link_->exec({.argv = {"cat"}}).value();
    number = peer_.expect(channel::Type::open).stream;
    return stream;
  }

  Seen seen_;
  Peer peer_;
  std::unique_ptr<GuestLink> link_;
};

}  // namespace snow
