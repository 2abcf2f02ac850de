// The agent's end of the channel: finds and opens the virtio port, and carries whole messages over
// it without blocking. What the host does not take yet waits in a queue, which whoever produces
// data looks at (`queued`) before it reads more. Single-threaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "guest/agent/util.h"
#include "guest/channel/message.h"

namespace snow::guest {

inline constexpr size_t kQueueLimit = 256 * 1024;  // nobody reads data to send above it

class Port {
 public:
  // `where`: empty: the virtio port, waited for as long as it takes; "fd:N", a unix socket or a
  // terminal device for tests. Exits the program when that cannot be opened.
  static Port open(const std::string& where);

  // Readable when there may be something to receive or room to send.
  [[nodiscard]] int poll_fd() const { return events_.get(); }
  // Takes what is there and sends what was queued. False: the other side is gone for good (never
  // on a virtio port: there the host comes back).
  [[nodiscard]] bool service(std::vector<channel::Message>& messages);
  // Only the first of the two.
  [[nodiscard]] bool receive(std::vector<channel::Message>& messages);

  void send(channel::Type type, uint32_t stream, std::string payload);
  void send(channel::Type type, uint32_t stream, const channel::Fields& fields) {
    send(type, stream, channel::encode_fields(fields));
  }
  void flush();                    // what the port takes now
  bool flush_all(int timeout_ms);  // false: the host did not take it in time
  [[nodiscard]] size_t queued() const { return queue_.size() - sent_; }
  [[nodiscard]] bool full() const { return queued() >= kQueueLimit; }

 private:
  Port(Fd fd, bool ends);
  Fd fd_;
  Fd events_;  // an epoll with fd_, edge-triggered: a port without a host says HUP for ever
  bool ends_;  // a read of 0 bytes means the end
  channel::FrameReader reader_;
  uint64_t foreign_seen_ = 0;
  std::string queue_;
  size_t sent_ = 0;  // bytes of queue_ that are gone
};

}  // namespace snow::guest
