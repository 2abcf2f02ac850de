// A moment until which an operation may take, made from the timeout that its caller gave.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/file.h"

namespace snow::peer {

inline constexpr int kForever = -1;  // as a timeout: wait without end

class Deadline {
 public:
  explicit Deadline(int timeout_ms)
      : timeout_ms_(timeout_ms),
        at_ns_(timeout_ms < 0 ? std::numeric_limits<int64_t>::max()
                              : monotonic_ns() + int64_t{timeout_ms} * 1'000'000) {}

  [[nodiscard]] int timeout_ms() const { return timeout_ms_; }  // as given at the start
  [[nodiscard]] bool never() const { return timeout_ms_ < 0; }
  // For poll(2): milliseconds, rounded up; 0 when it has passed; -1 for kForever.
  [[nodiscard]] int left_ms() const {
    if (never()) return -1;
    const int64_t left_ns = std::max<int64_t>(at_ns_ - monotonic_ns(), 0);
    return static_cast<int>((left_ns + 999'999) / 1'000'000);
  }

 private:
  int timeout_ms_;
  int64_t at_ns_;
};

}  // namespace snow::peer
