// The one thread that reads the guest channels of all VMs.
//
// A Wire is one connection to a QEMU. It belongs to a session (session.h) at any time; a fork gives
// the session of the parent a new wire. The loop reads what a wire has, at most kReadBytes a turn
// so that no guest starves the others, and hands whole messages to the wire's session. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "base/fd.h"
#include "guest/channel/message.h"

namespace snow {

class LinkSession;
class LinkLoop;

class Wire {
 public:
  explicit Wire(Fd fd) : fd_(std::move(fd)) {}

  [[nodiscard]] int fd() const { return fd_.get(); }
  // Its events go to `session` from now on.
  void belong_to(std::shared_ptr<LinkSession> session);
  [[nodiscard]] std::shared_ptr<LinkSession> session() const;

 private:
  friend class LinkLoop;
  const Fd fd_;
  uint64_t key_ = 0;
  mutable std::mutex mutex_;
  std::shared_ptr<LinkSession> session_;
  channel::FrameReader reader_;  // used by the loop's thread alone
};

class LinkLoop {
 public:
  static constexpr size_t kReadBytes = 64 * 1024;

  // Started at the first use, never stopped.
  static LinkLoop& instance();

  void add(const std::shared_ptr<Wire>& wire);
  // No event of the wire is taken up after this. The connection is shut down.
  void remove(Wire& wire);
  void watch_output(const Wire& wire, bool output);
  // Returns when the turn that is under way is over; at once on the loop's own thread.
  void barrier();

 private:
  LinkLoop();
  void run();
  void read(Wire& wire);
  std::shared_ptr<Wire> find(uint64_t key);

  Fd epoll_;
  Fd wake_;
  std::mutex mutex_;
  std::condition_variable turned_;
  uint64_t turns_ = 0;
  uint64_t next_key_ = 1;
  std::map<uint64_t, std::shared_ptr<Wire>> wires_;
};

}  // namespace snow
