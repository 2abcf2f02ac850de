// JSON from the network: parsed with a limit on its depth, since what is deep costs a stack to
// print. Code::corrupt if it is none.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace snow::peer {

inline constexpr int kMaxJsonDepth = 64;

Result<nlohmann::json> parse_json(std::string_view text);
// Compact; what is not UTF-8 in it is replaced.
std::string to_text(const nlohmann::json& json);

}  // namespace snow::peer
