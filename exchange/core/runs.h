// Small arithmetic on runs of pages and on masks of up to 64 pages.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "exchange/core/page_map.h"
#include "exchange/core/types.h"

namespace snow::exchange {

// What both hold; count 0 if nothing.
inline Run overlap(Run a, Run b) {
  const uint64_t first = std::max(a.first, b.first);
  const uint64_t end = std::min(uint64_t{a.first} + a.count, uint64_t{b.first} + b.count);
  if (end <= first) return {static_cast<uint32_t>(first), 0};
  return {static_cast<uint32_t>(first), static_cast<uint32_t>(end - first)};
}

// The mask that speaks of pages from `from` on, seen from page `to`; what falls out is lost.
inline uint64_t moved(uint64_t mask, uint32_t from, uint32_t to) {
  if (from >= to) return from - to < 64 ? mask << (from - to) : 0;
  return to - from < 64 ? mask >> (to - from) : 0;
}

// Calls visit(Run) for each row of set bits; bit i is page first + i.
template <class Visit>
void for_each_run(uint64_t mask, uint32_t first, Visit&& visit) {
  uint32_t at = 0;
  while (mask != 0) {
    const auto skip = static_cast<uint32_t>(std::countr_zero(mask));
    mask >>= skip;
    at += skip;
    const auto count = static_cast<uint32_t>(std::countr_one(mask));
    visit(Run{first + at, count});
    mask = count < 64 ? mask >> count : 0;
    at += count;
  }
}

}  // namespace snow::exchange
