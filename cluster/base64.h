// Base64 (RFC 4648, padded), as etcd's JSON gateway has keys and values. Pure functions.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace snow {

std::string base64_encode(std::string_view bytes);
// Code::corrupt: other characters, a wrong length, bits after the end.
Result<std::string> base64_decode(std::string_view text);

}  // namespace snow
