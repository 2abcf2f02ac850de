#include "cluster/json_text.h"

#include "base/nesting.h"

namespace snow {

Result<nlohmann::json> parse_json(std::string_view text) {
  if (!nested_within(text, kMaxJsonDepth)) {
    return fail(Code::corrupt, "nested more than {} deep", kMaxJsonDepth);
  }
  auto value = nlohmann::json::parse(text, nullptr, false);
  if (value.is_discarded()) return fail(Code::corrupt, "not JSON");
  return value;
}

Result<std::string> json_string(const nlohmann::json& object, const char* name, size_t max_bytes) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_string()) {
    return fail(Code::corrupt, "'{}' is missing or not a string", name);
  }
  const auto& text = found->get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    return fail(Code::corrupt, "'{}' has {} bytes; at most {} are allowed", name, text.size(),
                max_bytes);
  }
  return text;
}

Result<uint64_t> json_number(const nlohmann::json& object, const char* name, uint64_t maximum) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_number_unsigned()) {
    return fail(Code::corrupt, "'{}' is missing or not a whole number", name);
  }
  const auto number = found->get<uint64_t>();
  if (number > maximum) {
    return fail(Code::corrupt, "'{}' is {}; at most {} is allowed", name, number, maximum);
  }
  return number;
}

Result<bool> json_bool(const nlohmann::json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_boolean()) {
    return fail(Code::corrupt, "'{}' is missing or not a boolean", name);
  }
  return found->get<bool>();
}

}  // namespace snow
