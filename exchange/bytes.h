// Little-endian numbers in buffers of bytes. The component's own; what parses what comes from
// outside is built from it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace snow::exchange {

static_assert(std::endian::native == std::endian::little);

template <class Number>
void put_at(std::byte* at, std::type_identity_t<Number> value) {
  std::memcpy(at, &value, sizeof value);
}
template <class Number>
[[nodiscard]] Number get_at(const std::byte* at) {
  Number value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Appends to a buffer.
class Put {
 public:
  explicit Put(std::vector<std::byte>& out) : out_(out) { out_.clear(); }
  template <class Number>
  Put& number(std::type_identity_t<Number> value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    out_.insert(out_.end(), bytes, bytes + sizeof value);
    return *this;
  }
  Put& raw(std::span<const std::byte> bytes) {
    out_.insert(out_.end(), bytes.begin(), bytes.end());
    return *this;
  }

 private:
  std::vector<std::byte>& out_;
};

// Takes from the front. After an attempt to take more than there is, all it gives is zeros and
// ok() is false.
class Take {
 public:
  explicit Take(std::span<const std::byte> bytes) : rest_(bytes) {}
  template <class Number>
  [[nodiscard]] Number number() {
    const auto bytes = raw(sizeof(Number));
    return bytes.empty() ? Number{} : get_at<Number>(bytes.data());
  }
  [[nodiscard]] std::span<const std::byte> raw(size_t count) {
    if (count > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const auto taken = rest_.first(count);
    rest_ = rest_.subspan(count);
    return taken;
  }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool at_end() const { return ok_ && rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

}  // namespace snow::exchange
