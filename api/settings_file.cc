// The only file that includes toml++, which is slow to compile.
#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include "api/settings.h"
#include "base/file.h"

namespace snow {
namespace {

constexpr size_t kMaxFileBytes = 64 * 1024;

// The value as text; empty optional: neither string, number nor boolean.
std::optional<std::string> text_of(const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer()) return fmt::format("{}", number->get());
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  return std::nullopt;
}

}  // namespace

Result<void> read_settings(Settings& settings, const std::string& path) {
  SNOW_ASSIGN(const std::string content, read_file(path, kMaxFileBytes));
  const toml::parse_result parsed = toml::parse(content, path);
  if (!parsed) {
    return fail(Code::usage, "{}:{}: {}", path, parsed.error().source().begin.line,
                parsed.error().description());
  }
  for (const auto& [key, node] : parsed.table()) {
    const std::string place = fmt::format("{}:{}", path, node.source().begin.line);
    const auto value = text_of(node);
    if (!value) {
      return fail(Code::invalid, "{}: setting '{}': must be a string, whole number or boolean",
                  place, key.str());
    }
    if (auto set = set_setting(settings, key.str(), *value); !set) {
      return within(place, set.error());
    }
  }
  return {};
}

}  // namespace snow
