#include "api/settings.h"

#include <fmt/ranges.h>

#include <variant>

#include "api/text.h"

namespace snow {
namespace {

struct Size {
  uint64_t Settings::*field;
};
struct Count {
  unsigned Settings::*field;
  int64_t least;
  int64_t most;
};
struct Key {
  const char* name;
  std::variant<std::string Settings::*, bool Settings::*, Size, Count> field;
  bool is_path = false;
};

const Key kKeys[] = {
    {"state_dir", &Settings::state_dir, true},
    {"run_dir", &Settings::run_dir, true},
    {"qemu", &Settings::qemu, true},
    {"keeper", &Settings::keeper, true},
    {"memory_limit", Size{&Settings::memory_limit_bytes}},
    {"vm_limit", Count{&Settings::vm_limit, 1, 65535}},
    {"fork_limit", Count{&Settings::fork_limit, 1, 65535}},
    {"vcpu_limit", Count{&Settings::vcpu_limit, 0, 1'000'000}},
    {"ticket_seconds", Count{&Settings::ticket_seconds, 1, 86'400}},
    {"agent_ready_ms", Count{&Settings::agent_ready_ms, 100, 3'600'000}},
    {"uid_base", Count{&Settings::uid_base, 1000, 2'000'000'000}},
    {"api_group", &Settings::api_group},
    {"use_resend", &Settings::use_resend},
    {"lease_seconds", Count{&Settings::lease_seconds, 3, 3600}},
    {"fill_after_seconds", Count{&Settings::fill_after_seconds, 0, 86'400}},
    {"fill_rate_bytes", Size{&Settings::fill_rate_bytes}},
    {"multicast", &Settings::multicast},
    {"multicast_hosts", Count{&Settings::multicast_hosts, 2, 65535}},
    {"relay", &Settings::relay},
    {"link_rate_bytes", Size{&Settings::link_rate_bytes}},
    {"fault", &Settings::fault},
};

template <class... Cases>
struct Either : Cases... {
  using Cases::operator()...;
};
template <class... Cases>  // clang 14 does not deduce it by itself
Either(Cases...)->Either<Cases...>;

}  // namespace

std::vector<std::string> setting_keys() {
  std::vector<std::string> names;
  for (const Key& key : kKeys) names.emplace_back(key.name);
  return names;
}

Result<void> set_setting(Settings& settings, std::string_view key, std::string_view value) {
  for (const Key& known : kKeys) {
    if (key != known.name) continue;
    const auto set_text = [&](std::string Settings::*field) -> Result<void> {
      const bool empty_is_default = value.empty() && key == "keeper";
      if (known.is_path && !value.starts_with('/') && !empty_is_default) {
        return fail(Code::invalid, "{} '{}': must be an absolute path", key, value);
      }
      settings.*field = value;
      return {};
    };
    const auto set_flag = [&](bool Settings::*field) -> Result<void> {
      SNOW_ASSIGN(settings.*field, parse_bool(key, value));
      return {};
    };
    const auto set_size = [&](Size size) -> Result<void> {
      SNOW_ASSIGN(settings.*size.field, parse_size(key, value));
      return {};
    };
    const auto set_count = [&](Count count) -> Result<void> {
      SNOW_ASSIGN(const int64_t number, parse_number(key, value, count.least, count.most));
      settings.*count.field = static_cast<unsigned>(number);
      return {};
    };
    return std::visit(Either{set_text, set_flag, set_size, set_count}, known.field);
  }
  return fail(Code::usage, "setting '{}': unknown; known are {}", key,
              fmt::join(setting_keys(), ", "));
}

}  // namespace snow
