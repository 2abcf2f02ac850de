#include "peer/json_text.h"

namespace snow::peer {
namespace {

// The deepest nesting of brackets outside strings.
int depth_of(std::string_view text) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return deepest;
}

}  // namespace

Result<nlohmann::json> parse_json(std::string_view text) {
  if (depth_of(text) > kMaxJsonDepth) {
    return fail(Code::corrupt, "JSON nested deeper than {} levels", kMaxJsonDepth);
  }
  auto json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) return fail(Code::corrupt, "{} bytes that are not JSON", text.size());
  return json;
}

std::string to_text(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace snow::peer
