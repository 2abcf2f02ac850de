// A connection between two daemons: frames each way, after both have said hello. One service, one
// request at a time: whoever has it sends, and receives the answer in the same thread.
//
// One thread at a time; after `allow_duplex`, one that receives and one that sends. `interrupt` is
// free to any thread.
//
// Errors name the peer. Code::timed_out: the deadline passed; Code::unavailable: it is gone;
// Code::corrupt: it sent what is no frame. After any of them the connection is `broken`: it answers
// every call with Code::unavailable, and a pool does not take it back. (A late answer must not be
// taken for the next request's.) An error frame from the peer comes out of `receive` as that Error
// and breaks nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "peer/credentials.h"
#include "peer/frame.h"
#include "peer/socket.h"
#include "peer/tls.h"

namespace snow::peer {

class Connection {
 public:
  // Connects, proves both identities, says hello. `host` is who must answer: another is
  // Code::denied. Empty: whoever it is (for joining).
  static Result<std::unique_ptr<Connection>> connect(const Credentials& us, const Address& address,
                                                     const std::string& host,
                                                     std::string_view service, int timeout_ms);

  // One frame with `first` and `second` one after the other as payload, in one write.
  Result<void> send(uint8_t type, std::span<const std::byte> first,
                    std::span<const std::byte> second, int timeout_ms);
  Result<void> send(uint8_t type, std::span<const std::byte> payload, int timeout_ms) {
    return send(type, payload, {}, timeout_ms);
  }
  Result<void> send_error(const Error& error, int timeout_ms);

  Result<Frame> receive(int timeout_ms);
  // The type; `payload` is resized. No allocation once it has the capacity.
  Result<uint8_t> receive_into(std::vector<std::byte>& payload, int timeout_ms);
  // True when a frame has begun to arrive (or the end); false after the timeout, which breaks
  // nothing.
  Result<bool> wait(int timeout_ms);

  [[nodiscard]] const std::string& host() const { return host_; }        // the peer's id
  [[nodiscard]] const std::string& service() const { return service_; }  // as in the hello
  [[nodiscard]] bool authenticated() const { return authenticated_; }    // plain: taken as such
  [[nodiscard]] const std::string& name() const { return name_; }  // "host 'h…' at 10.0.0.7:7171"
  [[nodiscard]] Address remote() const { return socket_.remote(); }
  [[nodiscard]] int fd() const { return socket_.fd(); }

  [[nodiscard]] bool broken() const { return broken_.load(std::memory_order_relaxed); }
  // Fit for a request: whole, nothing unread, and open as far as is known here. One system call.
  [[nodiscard]] bool idle_and_alive() const;
  // The last frame went out and none came since: an answer is owed.
  [[nodiscard]] bool awaiting() const { return awaiting_.load(std::memory_order_relaxed); }

  void set_limit(size_t payload_bytes) { limit_ = payload_bytes; }  // of frames received
  void allow_duplex();
  void interrupt();  // wakes who waits on it; the connection is broken from now on
  void close() { interrupt(); }

 private:
  friend class Server;
  explicit Connection(Fd fd);
  // The server's half: TLS and the peer's hello; then `welcome`, or `refuse`, which lets the peer
  // read the reason before the connection goes down.
  static Result<void> greet(Connection& connection, const Credentials& us,
                            const Deadline& deadline);
  Result<void> welcome(const Credentials& us, const Deadline& deadline);
  void refuse(const Error& error);

  Result<void> start_tls(const Credentials& us, bool server, const Deadline& deadline);
  Result<void> read_hello(std::string_view wanted_service, const Deadline& deadline);
  Result<void> write(uint8_t type, std::span<const std::byte> first,
                     std::span<const std::byte> second, const Deadline& deadline);
  Result<void> transmit(uint8_t type, std::span<const std::byte> first,
                        std::span<const std::byte> second, const Deadline& deadline);
  Result<uint8_t> read(std::vector<std::byte>& payload, const Deadline& deadline);
  Result<size_t> read_some(std::span<std::byte> into, const Deadline& deadline);
  Result<void> read_header(Header& header, const Deadline& deadline);
  Result<void> read_payload(std::vector<std::byte>& payload, size_t size, const Deadline& deadline);
  tl::unexpected<Error> broken_by(Error error);

  Socket socket_;
  std::unique_ptr<Tls> tls_;   // none: plain
  std::vector<std::byte> in_;  // read ahead, so that a small frame is one read
  size_t in_begin_ = 0, in_end_ = 0;
  size_t limit_ = kMaxHelloBytes;
  std::string host_, service_, name_;
  bool authenticated_ = false;
  std::atomic<bool> broken_{false};
  std::atomic<bool> awaiting_{false};
};

}  // namespace snow::peer
