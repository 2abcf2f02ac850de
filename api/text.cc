#include "api/text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace snow {
namespace {

bool is_word_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '.' || c == '-';
}

// The power of 1024 of a suffix, -1 if it is none.
int suffix_power(std::string_view suffix) {
  if (suffix.empty()) return 0;
  std::string lower(suffix);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (lower == "b") return 0;
  const size_t at = std::string_view("kmgt").find(lower[0]);
  const std::string rest = lower.substr(1);
  if (at == std::string_view::npos || (!rest.empty() && rest != "b" && rest != "ib")) return -1;
  return static_cast<int>(at) + 1;
}

}  // namespace

Result<uint64_t> parse_size(std::string_view what, std::string_view text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  const std::string_view number = text.substr(0, digits);
  const int power = suffix_power(text.substr(digits));
  double value = 0;
  const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value,
                                            std::chars_format::fixed);
  if (number.empty() || number[0] == '.' || power < 0 || error != std::errc{} ||
      end != number.data() + number.size()) {
    return fail(Code::invalid, "{} '{}': not a size; write bytes, or a number with K, M, G or T",
                what, text);
  }
  const double bytes = std::ldexp(value, 10 * power);
  if (bytes >= 0x1p62) return fail(Code::invalid, "{} '{}': too large", what, text);
  uint64_t exact = 0;  // a double has 53 bits: whole numbers are read again, exactly
  if (number.find('.') == std::string_view::npos) {
    std::from_chars(number.data(), number.data() + number.size(), exact);
    return exact << (10 * power);
  }
  return static_cast<uint64_t>(bytes);
}

Result<int64_t> parse_number(std::string_view what, std::string_view text, int64_t least,
                             int64_t most) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error == std::errc::invalid_argument || end != text.data() + text.size()) {
    return fail(Code::invalid, "{} '{}': not a whole number", what, text);
  }
  if (error != std::errc{} || value < least || value > most) {
    return fail(Code::invalid, "{} {}: must be {} to {}", what, text, least, most);
  }
  return value;
}

Result<bool> parse_bool(std::string_view what, std::string_view text) {
  for (const std::string_view yes : {"true", "1", "yes", "on"}) {
    if (text == yes) return true;
  }
  for (const std::string_view no : {"false", "0", "no", "off"}) {
    if (text == no) return false;
  }
  return fail(Code::invalid, "{} '{}': must be true or false", what, text);
}

bool is_key(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), is_word_character);
}

Result<std::pair<std::string, std::string>> parse_key_value(std::string_view what,
                                                            std::string_view text) {
  const size_t at = text.find('=');
  const std::string_view key = text.substr(0, at);
  if (at == std::string_view::npos || !is_key(key)) {
    return fail(Code::usage, "{} '{}': must be KEY=VALUE, the key of letters, digits and _.-", what,
                text);
  }
  return std::pair(std::string(key), std::string(text.substr(at + 1)));
}

std::string format_size(uint64_t bytes) {
  static constexpr std::array kSuffixes = {"", "K", "M", "G", "T", "P"};
  double value = static_cast<double>(bytes);
  size_t power = 0;
  while (value >= 1024 && power + 1 < kSuffixes.size()) {
    value /= 1024;
    ++power;
  }
  if (value >= 100 || value == std::floor(value)) {
    return fmt::format("{:.0f}{}", value, kSuffixes[power]);
  }
  return fmt::format("{:.1f}{}", value, kSuffixes[power]);
}

}  // namespace snow
