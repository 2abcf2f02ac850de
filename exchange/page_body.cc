#include "exchange/page_body.h"

#include <lz4.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace snow::exchange {
namespace {

constexpr uint32_t kMaxBackoff = 64;
constexpr size_t kSampled = 4 * kPageBytes;  // fewer pages are their own sample
constexpr uint32_t kMaxBackoffSmall = 4;     // where trying costs a few microseconds

constexpr std::array<std::byte, kPageBytes> kZeroPage{};

int compress(wire::Bytes raw, std::span<std::byte> into) {
  return LZ4_compress_default(reinterpret_cast<const char*>(raw.data()),
                              reinterpret_cast<char*>(into.data()), static_cast<int>(raw.size()),
                              static_cast<int>(into.size()));
}

// Whether `packed` is the block of exactly as many bytes.
bool decompress(wire::Bytes packed, std::span<std::byte> into) {
  const int size = LZ4_decompress_safe(
      reinterpret_cast<const char*>(packed.data()), reinterpret_cast<char*>(into.data()),
      static_cast<int>(packed.size()), static_cast<int>(into.size()));
  return size >= 0 && static_cast<size_t>(size) == into.size();
}

}  // namespace

bool is_zero_page(const std::byte* page) {
  return std::memcmp(page, kZeroPage.data(), kPageBytes) == 0;
}

uint64_t squeeze_zeros(std::span<std::byte> pages) {
  uint64_t zeros = 0;
  std::byte* to = pages.data();
  for (size_t i = 0; i < pages.size() / kPageBytes; ++i) {
    std::byte* const from = pages.data() + i * kPageBytes;
    if (is_zero_page(from)) {
      zeros |= uint64_t{1} << i;
      continue;
    }
    if (to != from) std::memcpy(to, from, kPageBytes);
    to += kPageBytes;
  }
  return zeros;
}

wire::PageHash page_hash(const std::byte* page) {
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  thread_local const std::unique_ptr<EVP_MD_CTX, Free> context(EVP_MD_CTX_new());
  static EVP_MD* const sha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  std::array<unsigned char, 32> digest{};
  unsigned size = 0;
  if (EVP_DigestInit_ex2(context.get(), sha256, nullptr) != 1 ||
      EVP_DigestUpdate(context.get(), page, kPageBytes) != 1 ||
      EVP_DigestFinal_ex(context.get(), digest.data(), &size) != 1) {
    std::abort();  // without SHA-256 nothing can be trusted
  }
  wire::PageHash hash;
  std::memcpy(hash.data(), digest.data(), hash.size());
  return hash;
}

const wire::PageHash& zero_page_hash() {
  static const wire::PageHash hash = page_hash(kZeroPage.data());
  return hash;
}

wire::Bytes Packer::pack(wire::Bytes raw, wire::Buffer& scratch) {
  if (raw.empty()) return raw;
  const bool small = raw.size() < kSampled;
  if (small) skip_ = std::min(skip_, kMaxBackoffSmall);
  if (skip_ > 0) {
    --skip_;
    return raw;
  }
  if (scratch.size() < raw.size()) scratch.resize(raw.size());
  int size = 1;
  if (!small) {
    // A page from the middle: the first of a run is often a header of something.
    const wire::Bytes sample = raw.subspan(raw.size() / kPageBytes / 2 * kPageBytes, kPageBytes);
    size = compress(sample, std::span(scratch).first(kPageBytes / 4 * 3));
  }
  if (size > 0) size = compress(raw, std::span(scratch).first(raw.size() / 4 * 3));
  if (size <= 0) {
    backoff_ = std::min(backoff_ * 2 + 1, small ? kMaxBackoffSmall : kMaxBackoff);
    skip_ = backoff_;
    return raw;
  }
  backoff_ = 0;
  return wire::Bytes(scratch).first(static_cast<size_t>(size));
}

size_t pack_page(wire::Bytes page, std::span<std::byte> packed) {
  return static_cast<size_t>(std::max(compress(page, packed), 0));
}

bool unpack_page(wire::Bytes packed, std::span<std::byte> page) {
  return decompress(packed, page.first(kPageBytes));
}

Result<wire::Bytes> unpack(const wire::Pages& pages, wire::Buffer& scratch) {
  if (!pages.lz4) return pages.body;
  const size_t raw = size_t{wire::pages_in_body(pages)} * kPageBytes;
  if (scratch.size() < raw) scratch.resize(raw);
  if (!decompress(pages.body, std::span(scratch).first(raw))) {
    return fail(Code::corrupt, "PAGES: the body cannot be unpacked");
  }
  return wire::Bytes(scratch).first(raw);
}

}  // namespace snow::exchange
