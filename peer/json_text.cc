#include "peer/json_text.h"

#include "base/nesting.h"

namespace snow::peer {

Result<nlohmann::json> parse_json(std::string_view text) {
  if (!nested_within(text, kMaxJsonDepth)) {
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
