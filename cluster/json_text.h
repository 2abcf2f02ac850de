// JSON text from elsewhere (etcd, its values): parsed without exceptions and with a limit on depth,
// because writing or destroying a very deep value recurses. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace snow {

constexpr size_t kMaxJsonDepth = 32;

// Code::corrupt: "not JSON" or "nested too deep".
Result<nlohmann::json> parse_json(std::string_view text);

// Members of an object, checked. Code::corrupt names the member; the caller names the thing.
Result<std::string> json_string(const nlohmann::json& object, const char* name, size_t max_bytes);
Result<uint64_t> json_number(const nlohmann::json& object, const char* name, uint64_t maximum);
Result<bool> json_bool(const nlohmann::json& object, const char* name);

}  // namespace snow
