#include "base/names.h"

#include <algorithm>

namespace snow {
namespace {

bool is_letter_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

}  // namespace

Result<void> check_name(std::string_view what, std::string_view name) {
  const bool good = !name.empty() && name.size() <= 63 && is_letter_or_digit(name.front()) &&
                    std::all_of(name.begin(), name.end(), [](char c) {
                      return is_letter_or_digit(c) || c == '_' || c == '.' || c == '-';
                    });
  if (good) return {};
  return fail(Code::invalid,
              "{} name '{}': it must begin with a letter or digit, go on with these, '_', '.' and "
              "'-', and have at most 63 characters",
              what, name.substr(0, 80));
}

}  // namespace snow
