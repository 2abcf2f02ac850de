// File descriptors that close themselves, and whole reads and writes on them.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "base/result.h"

namespace snow {

// Owns one descriptor. Movable, not copyable. Not thread-safe.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~Fd() { reset(); }

  [[nodiscard]] int get() const { return fd_; }
  [[nodiscard]] bool valid() const { return fd_ >= 0; }
  explicit operator bool() const { return valid(); }
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

// Each retries EINTR and short counts. `read_all_at` fails with Code::corrupt at an early end of
// file; `name` is what the error message calls the file.
Result<void> read_all_at(int fd, uint64_t offset, std::span<std::byte> into,
                         const std::string& name);
Result<void> write_all_at(int fd, uint64_t offset, std::span<const std::byte> data,
                          const std::string& name);
Result<void> write_all(int fd, std::span<const std::byte> data, const std::string& name);

// Unix stream (or seqpacket) sockets. Paths over 107 bytes are Code::invalid. `listen_unix`
// replaces a stale socket file that nobody listens on; one that answers is Code::exists.
Result<Fd> connect_unix(const std::string& path, int type = 1 /* SOCK_STREAM */);
Result<Fd> listen_unix(const std::string& path, int type = 1 /* SOCK_STREAM */);

}  // namespace snow
