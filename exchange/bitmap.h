// A bit for each page, in memory that somebody else owns (a mapped file). Set and cleared by any
// thread; a reader that sees a bit set also sees what was written before it was set.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace snow::exchange {

class Bitmap {
 public:
  Bitmap() = default;
  // `words`: words_of(pages) of them, outliving this.
  Bitmap(uint64_t* words, uint32_t pages) : words_(words), pages_(pages) {}

  static constexpr size_t words_of(uint32_t pages) { return (size_t{pages} + 63) / 64; }

  [[nodiscard]] bool test(uint32_t page) const { return (load(page / 64) >> (page % 64) & 1) != 0; }
  // Both return whether the bit was changed.
  bool set(uint32_t page) {
    const uint64_t bit = uint64_t{1} << (page % 64);
    return (word(page / 64).fetch_or(bit, std::memory_order_acq_rel) & bit) == 0;
  }
  bool clear(uint32_t page) {
    const uint64_t bit = uint64_t{1} << (page % 64);
    return (word(page / 64).fetch_and(~bit, std::memory_order_acq_rel) & bit) != 0;
  }

  // The first page in [first, end) whose bit is set (or clear); `end` if none.
  [[nodiscard]] uint32_t next_set(uint32_t first, uint32_t end) const {
    return next(first, end, 0);
  }
  [[nodiscard]] uint32_t next_clear(uint32_t first, uint32_t end) const {
    return next(first, end, ~uint64_t{0});
  }
  // How page `first` is, and the end of the pages from it on that are so; at most `end`, which is
  // beyond `first`. Never empty, even if another thread changes `first` meanwhile: asking next_set
  // or next_clear from `first` on would look at it twice, and may find it both ways.
  struct Stretch {
    bool set = false;
    uint32_t end = 0;
  };
  [[nodiscard]] Stretch stretch(uint32_t first, uint32_t end) const {
    const bool set = test(first);
    return {set, set ? next_clear(first + 1, end) : next_set(first + 1, end)};
  }
  [[nodiscard]] uint64_t load(size_t index) const {
    return std::atomic_ref(words_[index]).load(std::memory_order_acquire);
  }
  [[nodiscard]] uint32_t count() const {
    uint32_t total = 0;
    for (size_t i = 0; i < words_of(pages_); ++i) {
      total += static_cast<uint32_t>(std::popcount(load(i)));
    }
    return total;
  }
  [[nodiscard]] uint32_t pages() const { return pages_; }

 private:
  [[nodiscard]] std::atomic_ref<uint64_t> word(size_t index) const {
    return std::atomic_ref(words_[index]);
  }
  [[nodiscard]] uint32_t next(uint32_t first, uint32_t end, uint64_t flip) const {
    while (first < end) {
      const uint64_t left = (load(first / 64) ^ flip) >> (first % 64);
      if (left != 0) {
        const uint32_t page = first + static_cast<uint32_t>(std::countr_zero(left));
        return page < end ? page : end;
      }
      if (end - first <= 64 - first % 64) break;
      first += 64 - first % 64;
    }
    return end;
  }

  uint64_t* words_ = nullptr;
  uint32_t pages_ = 0;
};

}  // namespace snow::exchange
