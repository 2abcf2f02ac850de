// One TCP connection, read and written with deadlines. One thread may read while another writes;
// `interrupt` and `quiet` may be called by any thread while the object lives.
//
// Errors: Code::timed_out when the deadline passed, Code::unavailable when the other side closed or
// the network failed. Messages do not name the peer; the caller does (within()).
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <span>

#include "base/fd.h"
#include "base/result.h"
#include "peer/address.h"
#include "peer/deadline.h"

namespace snow::peer {

class Socket {
 public:
  explicit Socket(Fd fd);  // a connected, blocking TCP socket; sets TCP_NODELAY and keep-alive

  // At least one byte, at most all of `into`.
  Result<size_t> read_some(std::span<std::byte> into, const Deadline& deadline);
  // All of `parts`, which are changed. One sendmsg(2) unless the kernel's buffer is full.
  Result<void> write_all(std::span<iovec> parts, const Deadline& deadline);

  // True once a byte (or the end) can be read; false when the deadline has passed.
  Result<bool> wait_readable(const Deadline& deadline);
  // Open, and nothing has arrived: fit to send a request on.
  [[nodiscard]] bool quiet() const;
  // Wakes a thread that reads or writes; every later call fails. The descriptor stays open.
  void interrupt();

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] Address local() const;
  [[nodiscard]] Address remote() const;

 private:
  bool set_patience(int timeout_ms);

  Fd fd_;
  int patience_ms_ = kForever;  // what SO_RCVTIMEO is set to
};

Result<Fd> connect_tcp(const Address& address, const Deadline& deadline);
// Port 0: the kernel chooses. SO_REUSEADDR is set.
Result<Fd> listen_tcp(const Address& address);

}  // namespace snow::peer
