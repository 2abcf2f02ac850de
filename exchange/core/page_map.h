// A bit for each page of an image, and how many are set.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "exchange/core/types.h"

namespace snow::exchange {

// Bits [0, count) set; count <= 64.
inline uint64_t low_bits(uint32_t count) {
  return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

class PageMap {
 public:
  explicit PageMap(uint32_t pages) : pages_(pages), words_((uint64_t{pages} + 63) / 64) {}

  [[nodiscard]] uint32_t size() const { return pages_; }
  [[nodiscard]] uint32_t count() const { return count_; }
  [[nodiscard]] bool test(uint32_t page) const { return (words_[page / 64] >> page % 64 & 1) != 0; }
  // Blocks of 64 pages; the last one's surplus bits are 0.
  [[nodiscard]] uint32_t blocks() const { return static_cast<uint32_t>(words_.size()); }
  [[nodiscard]] uint64_t block(uint32_t block) const { return words_[block]; }

  // Bit i: page first + i, for up to 64 pages; pages past the end read as 0.
  [[nodiscard]] uint64_t bits(uint32_t first) const {
    const uint32_t word = first / 64;
    const uint32_t shift = first % 64;
    uint64_t bits = word < words_.size() ? words_[word] >> shift : 0;
    if (shift != 0 && word + 1 < words_.size()) bits |= words_[word + 1] << (64 - shift);
    return bits;
  }
  // These change one page or a run within the map, and say how many bits changed.
  uint32_t set(Run run) {
    return change(
        run,
        [](uint64_t& word, uint64_t mask) {
          const uint32_t added = static_cast<uint32_t>(std::popcount(mask & ~word));
          word |= mask;
          return added;
        },
        1);
  }
  uint32_t reset(Run run) {
    return change(
        run,
        [](uint64_t& word, uint64_t mask) {
          const uint32_t gone = static_cast<uint32_t>(std::popcount(mask & word));
          word &= ~mask;
          return gone;
        },
        -1);
  }
  [[nodiscard]] bool all(Run run) const {
    for (uint32_t at = run.first; at < run.end(); at += 64) {
      const uint64_t mask = low_bits(std::min(64u, run.end() - at));
      if ((bits(at) & mask) != mask) return false;
    }
    return true;
  }
  [[nodiscard]] bool none(Run run) const {
    for (uint32_t at = run.first; at < run.end(); at += 64) {
      if ((bits(at) & low_bits(std::min(64u, run.end() - at))) != 0) return false;
    }
    return true;
  }

 private:
  template <class Change>
  uint32_t change(Run run, Change&& apply, int sign) {
    uint32_t changed = 0;
    uint64_t at = run.first;
    const uint64_t end = std::min<uint64_t>(uint64_t{run.first} + run.count, pages_);
    while (at < end) {
      const uint64_t upto = std::min<uint64_t>(end, (at / 64 + 1) * 64);
      const uint64_t mask = low_bits(static_cast<uint32_t>(upto - at)) << at % 64;
      changed += apply(words_[at / 64], mask);
      at = upto;
    }
    count_ = sign > 0 ? count_ + changed : count_ - changed;
    return changed;
  }

  uint32_t pages_;
  uint32_t count_ = 0;
  std::vector<uint64_t> words_;
};

}  // namespace snow::exchange
