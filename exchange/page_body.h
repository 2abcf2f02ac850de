// The bytes of pages on their way: which are zeros, LZ4 where it pays, hashes. No I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "exchange/wire.h"

namespace snow::exchange {

[[nodiscard]] bool is_zero_page(const std::byte* page);

// Up to 64 pages: moves those that are not zeros to the front, in order. Bit i of the answer: page
// i was zeros.
uint64_t squeeze_zeros(std::span<std::byte> pages);

// The first 16 bytes of the SHA-256 of a page.
wire::PageHash page_hash(const std::byte* page);
[[nodiscard]] const wire::PageHash& zero_page_hash();

// Compresses what a connection sends, if that pays: at least a quarter less, by a sample of each
// run of more than a few pages; where it does not pay, it tries less and less often. One thread at
// a time.
class Packer {
 public:
  // `raw`: whole pages. The answer lies in `raw` or in `scratch`, and is `raw` unless it pays.
  wire::Bytes pack(wire::Bytes raw, wire::Buffer& scratch);

 private:
  uint32_t skip_ = 0;     // runs that are not looked at
  uint32_t backoff_ = 0;  // how many, after the next sample that says no
};

// One page as an LZ4 block of at most packed.size() bytes; its size, 0 if it is longer.
size_t pack_page(wire::Bytes page, std::span<std::byte> packed);
// False: it is not the block of a page.
bool unpack_page(wire::Bytes packed, std::span<std::byte> page);

// The pages of a parsed answer that are not zeros, one after the other: in its body or in
// `scratch`. Code::corrupt.
Result<wire::Bytes> unpack(const wire::Pages& pages, wire::Buffer& scratch);

// Calls `visit(Run, bytes)` for each stretch of the run that is not zeros, in order, and
// `visit(Run, {})` for each that is. `raw`: as unpack() gives it.
template <class Visit>
void visit_stretches(Run run, uint64_t zeros, wire::Bytes raw, Visit&& visit) {
  uint32_t at = 0;
  while (at < run.count) {
    const bool zero = (zeros >> at & 1) != 0;
    uint32_t end = at + 1;
    while (end < run.count && ((zeros >> end & 1) != 0) == zero) ++end;
    const size_t bytes = zero ? 0 : size_t{end - at} * kPageBytes;
    visit(Run{run.first + at, end - at}, raw.first(bytes));
    raw = raw.subspan(bytes);
    at = end;
  }
}

}  // namespace snow::exchange
