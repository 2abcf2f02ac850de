// Small conversions for the guest channel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace snow {

inline std::string little_endian(uint32_t value) {
  std::string bytes;
  for (int shift = 0; shift < 32; shift += 8) bytes += static_cast<char>(value >> shift & 0xff);
  return bytes;
}

// Of exactly four bytes.
inline uint32_t from_little_endian(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  return value;
}

// What a guest says, fit for a log or a terminal: at most `limit` bytes, control characters (a
// terminal's escape sequences begin with one) replaced.
inline std::string printable(std::string_view text, size_t limit = 512) {
  std::string result(text.substr(0, limit));
  for (char& c : result) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < ' ' || byte == 0x7f) c = '?';
  }
  return result;
}

}  // namespace snow
