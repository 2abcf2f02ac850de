// Times, in a histogram of four buckets for each power of two (within 19 percent), and what share
// of them lay below what. Old ones fade: when `fade` have come in, all counts are halved.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "exchange/core/types.h"

namespace snow::exchange {

class Latency {
 public:
  // fade 0: never.
  explicit Latency(uint64_t fade = 0) : fade_(fade) {}

  void add(Nanos time) {
    ++buckets_[bucket(time)];
    if (++total_ == fade_) {
      total_ = 0;
      for (uint32_t& count : buckets_) total_ += count /= 2;
    }
    ++count_;
  }
  [[nodiscard]] uint64_t count() const { return count_; }
  // The upper end of the bucket below which `share` (0 to 1) of the times lie; 0 if there are none.
  [[nodiscard]] Nanos quantile(double share) const {
    if (total_ == 0) return 0;
    const double target = share * static_cast<double>(total_);
    uint64_t below = 0;
    for (size_t i = 0; i < buckets_.size(); ++i) {
      below += buckets_[i];
      if (static_cast<double>(below) >= target && below > 0) return upper(i);
    }
    return upper(buckets_.size() - 1);
  }

 private:
  static size_t bucket(Nanos time) {
    const uint64_t value = time < 4 ? 4 : static_cast<uint64_t>(time);
    const unsigned log = static_cast<unsigned>(std::bit_width(value)) - 1;
    const size_t index = (log - 2) * 4 + (value >> (log - 2) & 3);
    return index < kBuckets ? index : kBuckets - 1;
  }
  static Nanos upper(size_t index) {
    const unsigned log = static_cast<unsigned>(index / 4) + 2;
    return static_cast<Nanos>((uint64_t{5} + index % 4) << (log - 2));
  }

  static constexpr size_t kBuckets = 160;  // up to 2^42 ns, more than an hour
  std::array<uint32_t, kBuckets> buckets_{};
  uint64_t fade_;
  uint64_t total_ = 0;
  uint64_t count_ = 0;
};

}  // namespace snow::exchange
