// Small wrappers for the guest's programs: descriptors, files, time, errno as text. Nothing of the
// host's base/ is used here. Not thread-safe beyond what the system calls are.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace snow::guest {

// Owns a descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Fd() { reset(); }
  void reset();
  [[nodiscard]] int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

int64_t monotonic_us();

// How long what was done since the last call took, in microseconds.
class Laps {
 public:
  int64_t end() {
    const int64_t now = monotonic_us();
    return now - std::exchange(last_, now);
  }

 private:
  int64_t last_ = monotonic_us();
};

std::string error_text(int error);       // strerror
std::string_view error_code(int error);  // the channel's code for an errno ("not_found", ...)

// The whole of a small file, at most `limit` bytes; nullopt with errno.
std::optional<std::string> read_small_file(const std::string& path, size_t limit = 1 << 20);
// Writes in place (for /proc, /sys, /etc files that may be bind mounts). 0 or errno.
int write_small_file(const std::string& path, std::string_view text, int extra_flags = 0);
// By a temporary file beside it and rename. 0 or errno.
int replace_file(const std::string& path, std::string_view text, unsigned mode);
// Names in a directory, sorted, without dot files; empty when it is not there.
std::vector<std::string> list_directory(const std::string& path);
std::vector<std::string> split(std::string_view text, char separator);
std::string shell_quote(std::string_view text);  // as it is if harmless, else in single quotes

// To stderr, one line.
void log_line(const std::string& text);

}  // namespace snow::guest
