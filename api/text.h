// Values as people write them: sizes, numbers, KEY=VALUE, names. Shared by the daemon's settings,
// the API's requests and the command line, so that all of them refuse the same things in the same
// words. Free of I/O and state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace snow {

// "512M", "2G", "1.5G", "4096": powers of 1024; suffixes K, M, G, T with an optional iB or B, in
// either case. Code::invalid names `what`.
Result<uint64_t> parse_size(std::string_view what, std::string_view text);

// A decimal number between the bounds, no sign but '-', nothing around it.
Result<int64_t> parse_number(std::string_view what, std::string_view text, int64_t least,
                             int64_t most);

// "true", "1", "yes", "on" and their opposites.
Result<bool> parse_bool(std::string_view what, std::string_view text);

bool is_key(std::string_view text);  // [A-Za-z0-9_.-]+

// "KEY=VALUE" at the first '='; the key is_key().
Result<std::pair<std::string, std::string>> parse_key_value(std::string_view what,
                                                            std::string_view text);

std::string format_size(uint64_t bytes);  // "512M", "1.5G", "0"

}  // namespace snow
