#include "guestlink/loop.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <thread>
#include <vector>

#include "base/file.h"
#include "guestlink/session.h"

namespace snow {
namespace {

constexpr int64_t kTickNs = 1'000'000'000;
thread_local bool on_loop_thread = false;

}  // namespace

void Wire::belong_to(std::shared_ptr<LinkSession> session) {
  const std::lock_guard lock(mutex_);
  session_.swap(session);
}

std::shared_ptr<LinkSession> Wire::session() const {
  const std::lock_guard lock(mutex_);
  return session_;
}

LinkLoop& LinkLoop::instance() {
  // Never destroyed: its thread runs until the process ends.
  static auto* const loop = new LinkLoop;
  return *loop;
}

LinkLoop::LinkLoop()
    : epoll_(::epoll_create1(EPOLL_CLOEXEC)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  epoll_event event{};
  event.events = EPOLLIN;
  if (!epoll_ || !wake_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) < 0) {
    std::abort();  // at the start of the process: no descriptors left
  }
  std::thread([this] { run(); }).detach();
}

void LinkLoop::add(const std::shared_ptr<Wire>& wire) {
  const std::lock_guard lock(mutex_);
  wire->key_ = next_key_++;
  wires_[wire->key_] = wire;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = wire->key_;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wire->fd(), &event);
}

void LinkLoop::remove(Wire& wire) {
  const std::lock_guard lock(mutex_);
  if (wires_.erase(wire.key_) == 0) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, wire.fd(), nullptr);
  ::shutdown(wire.fd(), SHUT_RDWR);
}

void LinkLoop::watch_output(const Wire& wire, bool output) {
  epoll_event event{};
  event.events = output ? EPOLLIN | EPOLLOUT : EPOLLIN;
  event.data.u64 = wire.key_;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, wire.fd(), &event);
}

void LinkLoop::barrier() {
  if (on_loop_thread) return;
  std::unique_lock lock(mutex_);
  const uint64_t wanted = turns_ + 1;  // the turn that is under way, or an empty one
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
  turned_.wait(lock, [&] { return turns_ >= wanted; });
}

std::shared_ptr<Wire> LinkLoop::find(uint64_t key) {
  const std::lock_guard lock(mutex_);
  const auto found = wires_.find(key);
  return found == wires_.end() ? nullptr : found->second;
}

void LinkLoop::run() {
  on_loop_thread = true;
  int64_t next_tick = monotonic_ns() + kTickNs;
  std::array<epoll_event, 64> ready;
  for (;;) {
    const int64_t left = std::max<int64_t>(0, next_tick - monotonic_ns());
    const int count = ::epoll_wait(epoll_.get(), ready.data(), ready.size(),
                                   static_cast<int>(left / 1'000'000) + 1);
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = ready[static_cast<size_t>(i)];
      if (event.data.u64 == 0) {
        uint64_t woken = 0;
        (void)!::read(wake_.get(), &woken, sizeof woken);
      } else if (const auto wire = find(event.data.u64)) {
        if ((event.events & EPOLLOUT) != 0) wire->session()->on_writable(*wire);
        if ((event.events & ~EPOLLOUT) != 0) read(*wire);
      }
    }
    if (monotonic_ns() >= next_tick) {
      next_tick = monotonic_ns() + kTickNs;
      std::vector<std::shared_ptr<Wire>> all;
      {
        const std::lock_guard lock(mutex_);
        for (const auto& [key, wire] : wires_) all.push_back(wire);
      }
      for (const auto& wire : all) wire->session()->on_tick();
    }
    const std::lock_guard lock(mutex_);
    ++turns_;
    turned_.notify_all();
  }
}

void LinkLoop::read(Wire& wire) {
  std::array<char, kReadBytes> buffer;
  const ssize_t got = ::recv(wire.fd(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    remove(wire);
    for (auto session = wire.session(); !session->on_closed(wire);) session = wire.session();
    return;
  }
  std::vector<channel::Message> messages;
  const uint64_t dropped = wire.reader_.dropped();
  const uint64_t foreign = wire.reader_.foreign_versions();
  wire.reader_.feed({buffer.data(), static_cast<size_t>(got)}, messages);
  const LinkSession::Received received{std::move(messages), wire.reader_.dropped() - dropped,
                                       wire.reader_.foreign_versions() - foreign};
  // Again where the wire has been given to another session in between.
  for (auto session = wire.session(); !session->on_received(wire, received);) {
    session = wire.session();
  }
}

}  // namespace snow
