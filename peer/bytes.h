// Little-endian numbers and short texts, appended to a buffer or taken from the front of one. The
// component's own; every parser of bytes from the network is built from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace snow::peer {

class Writer {
 public:
  void number(uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) out_.push_back(static_cast<std::byte>(value >> (8 * i)));
  }
  void raw(std::span<const std::byte> bytes) {
    out_.insert(out_.end(), bytes.begin(), bytes.end());
  }
  void text(std::string_view text) { raw(std::as_bytes(std::span(text))); }
  std::vector<std::byte> take() { return std::move(out_); }

 private:
  std::vector<std::byte> out_;
};

// Each returns nothing when too few bytes are left, and takes nothing then.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}

  std::optional<uint64_t> number(size_t bytes) {
    if (rest_.size() < bytes) return std::nullopt;
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i) value |= std::to_integer<uint64_t>(rest_[i]) << (8 * i);
    rest_ = rest_.subspan(bytes);
    return value;
  }
  std::optional<std::span<const std::byte>> raw(size_t bytes) {
    if (rest_.size() < bytes) return std::nullopt;
    const auto taken = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return taken;
  }
  std::optional<std::string_view> text(size_t bytes) {
    const auto taken = raw(bytes);
    if (!taken) return std::nullopt;
    return std::string_view(reinterpret_cast<const char*>(taken->data()), taken->size());
  }
  // u8 length, then that many bytes.
  std::optional<std::string_view> short_text() {
    if (rest_.empty() || rest_.size() - 1 < std::to_integer<size_t>(rest_[0])) return std::nullopt;
    return text(static_cast<size_t>(*number(1)));
  }
  [[nodiscard]] std::span<const std::byte> rest() const { return rest_; }

 private:
  std::span<const std::byte> rest_;
};

}  // namespace snow::peer
