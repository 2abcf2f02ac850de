#include "api/fields.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "api/text.h"
#include "base/names.h"

namespace snow {
namespace {
constexpr size_t kMostMapEntries = 1024;
constexpr size_t kMostValueBytes = 32 * 1024;  // channel::kMaxFieldBytes
}  // namespace

FieldReader::FieldReader(const nlohmann::json& object) : object_(object) {
  if (!object.is_object()) {
    refuse(Code::usage, fmt::format("body: must be a JSON object, not {}", object.type_name()));
  }
}

void FieldReader::refuse(Code code, std::string message) {
  if (!error_) error_ = Error{code, std::move(message)};
}

const nlohmann::json* FieldReader::find(const char* field) {
  known_.emplace(field);
  if (!object_.is_object()) return nullptr;
  const auto at = object_.find(field);
  return at == object_.end() ? nullptr : &*at;
}

bool FieldReader::has(const char* field) const {
  return object_.is_object() && object_.contains(field);
}

bool FieldReader::check_text(const char* field, const nlohmann::json& value, size_t most_bytes) {
  if (!value.is_string()) {
    refuse(Code::usage, fmt::format("{}: must be a string, not {}", field, value.type_name()));
    return false;
  }
  const auto& text = value.get_ref<const std::string&>();
  if (text.size() > most_bytes) {
    refuse(Code::invalid, fmt::format("{}: longer than {} bytes", field, most_bytes));
    return false;
  }
  if (text.find('\0') != std::string::npos) {
    refuse(Code::invalid, fmt::format("{}: has a zero byte in it", field));
    return false;
  }
  return true;
}

void FieldReader::text(const char* field, std::string& into, size_t most_bytes) {
  const nlohmann::json* value = find(field);
  if (value != nullptr && check_text(field, *value, most_bytes)) into = value->get<std::string>();
}

void FieldReader::text(const char* field, std::optional<std::string>& into, size_t most_bytes) {
  const nlohmann::json* value = find(field);
  if (value != nullptr && check_text(field, *value, most_bytes)) into = value->get<std::string>();
}

void FieldReader::name(const char* field, std::string& into) {
  std::string value;
  text(field, value);
  if (!has(field) || error_) return;
  if (auto checked = check_name(field, value); !checked) {
    refuse(checked.error().code, checked.error().message);
  }
  into = std::move(value);
}

void FieldReader::path(const char* field, std::string& into) {
  text(field, into);
  if (has(field) && !error_ && (into.empty() || into[0] != '/')) {
    refuse(Code::invalid, fmt::format("{} '{}': must be an absolute path", field, into));
  }
}

void FieldReader::choice(const char* field, std::string& into,
                         const std::vector<std::string>& choices) {
  text(field, into);
  if (!has(field) || error_) return;
  if (std::find(choices.begin(), choices.end(), into) == choices.end()) {
    refuse(Code::invalid,
           fmt::format("{} '{}': must be one of {}", field, into, fmt::join(choices, ", ")));
  }
}

void FieldReader::flag(const char* field, bool& into) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return;
  if (!value->is_boolean()) {
    refuse(Code::usage,
           fmt::format("{}: must be true or false, not {}", field, value->type_name()));
    return;
  }
  into = value->get<bool>();
}

void FieldReader::number(const char* field, int64_t& into, int64_t least, int64_t most) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return;
  if (!value->is_number_integer()) {
    refuse(Code::usage, fmt::format("{}: must be a whole number, not {}", field,
                                    value->is_number() ? value->dump() : value->type_name()));
    return;
  }
  const bool huge =
      value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (huge || value->get<int64_t>() < least || value->get<int64_t>() > most) {
    refuse(Code::invalid,
           fmt::format("{} {}: must be {} to {}", field, value->dump(), least, most));
    return;
  }
  into = value->get<int64_t>();
}

void FieldReader::number(const char* field, unsigned& into, int64_t least, int64_t most) {
  int64_t value = into;
  number(field, value, least, most);
  into = static_cast<unsigned>(value);
}

void FieldReader::size(const char* field, uint64_t& into) {
  auto value = static_cast<int64_t>(into);
  number(field, value, 0, (int64_t{1} << 62) - 1);
  into = static_cast<uint64_t>(value);
}

void FieldReader::words(const char* field, std::vector<std::string>& into, size_t most) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return;
  if (!value->is_array()) {
    refuse(Code::usage,
           fmt::format("{}: must be an array of strings, not {}", field, value->type_name()));
    return;
  }
  if (value->size() > most) {
    refuse(Code::invalid, fmt::format("{}: more than {} entries", field, most));
    return;
  }
  for (const nlohmann::json& word : *value) {
    if (!check_text(field, word, kMostValueBytes)) return;
    into.push_back(word.get<std::string>());
  }
}

void FieldReader::map(const char* field, std::map<std::string, std::string>& into) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return;
  if (!value->is_object()) {
    refuse(Code::usage, fmt::format("{}: must be an object, not {}", field, value->type_name()));
    return;
  }
  if (value->size() > kMostMapEntries) {
    refuse(Code::invalid, fmt::format("{}: more than {} entries", field, kMostMapEntries));
    return;
  }
  for (const auto& [key, entry] : value->items()) {
    if (!is_key(key) || key.size() > 200) {
      refuse(Code::invalid, fmt::format("{} '{}': a key has 1 to 200 letters, digits and _.-",
                                        field, key.substr(0, 80)));
      return;
    }
    if (!check_text(field, entry, kMostValueBytes)) return;
    into[key] = entry.get<std::string>();
  }
}

void FieldReader::need(const char* field) {
  if (!has(field)) refuse(Code::usage, fmt::format("{}: missing", field));
}

Result<void> FieldReader::done() {
  if (!error_) {
    for (const auto& [key, value] : object_.items()) {
      if (known_.contains(key)) continue;
      refuse(Code::usage, fmt::format("{}: unknown field; known are {}", key.substr(0, 80),
                                      fmt::join(known_, ", ")));
      break;
    }
  }
  if (error_) return tl::unexpected<Error>(*error_);
  return {};
}

}  // namespace snow
