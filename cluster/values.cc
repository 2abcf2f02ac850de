#include "cluster/values.h"

#include "base/names.h"
#include "base/nesting.h"
#include "cluster/json_text.h"

namespace snow {
namespace {

using nlohmann::json;

constexpr uint64_t kVersion = 1;
constexpr size_t kMaxTextBytes = 128;
constexpr unsigned kMaxCount = 1u << 20;
constexpr uint64_t kMaxNumber = INT64_MAX;  // what every reader of JSON can hold

json resources_json(const Resources& resources) {
  return {{"memory", resources.memory_bytes}, {"cpus", resources.cpus}, {"vms", resources.vms}};
}

Result<Resources> resources_of(const json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_object()) {
    return fail(Code::corrupt, "'{}' is missing or not an object", name);
  }
  Resources resources;
  SNOW_ASSIGN(resources.memory_bytes, json_number(*found, "memory", kMaxNumber));
  SNOW_ASSIGN(const uint64_t cpus, json_number(*found, "cpus", kMaxCount));
  SNOW_ASSIGN(const uint64_t vms, json_number(*found, "vms", kMaxCount));
  resources.cpus = static_cast<unsigned>(cpus);
  resources.vms = static_cast<unsigned>(vms);
  return resources;
}

Result<json> data_of(const json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return json::object();
  if (auto checked = check_data(name, *found); !checked) {
    return fail(Code::corrupt, "{}", checked.error().message);
  }
  return *found;
}

Result<void> corrupt_if(Result<void> checked) {
  if (checked) return {};
  return fail(Code::corrupt, "{}", checked.error().message);
}

Result<void> check_version(const json& value) {
  if (!value.is_object()) return fail(Code::corrupt, "not an object");
  SNOW_ASSIGN(const uint64_t version, json_number(value, "version", kMaxNumber));
  if (version == kVersion) return {};
  return fail(Code::corrupt, "version {}, this Thundersnow knows {}; upgrade this host", version,
              kVersion);
}

// Runs `parse` on the value; errors name the key.
template <class Record>
Result<Record> parse(const Directory::Entry& entry, const char* kind,
                     Result<void> (*read)(const json&, Record&)) {
  Record record;
  auto done = [&]() -> Result<void> {
    if (!entry.key.starts_with(kind)) return fail(Code::corrupt, "not below '{}'", kind);
    record.id = entry.key.substr(std::string_view(kind).size());
    SNOW_TRY(check_version(entry.value));
    return read(entry.value, record);
  }();
  if (!done)
    return within(fmt::format("directory key '{}'", printable_key(entry.key)), done.error());
  return record;
}

Result<void> read_member(const json& value, Member& member) {
  SNOW_TRY(corrupt_if(check_host_id(member.id)));
  SNOW_ASSIGN(member.name, json_string(value, "name", kMaxTextBytes));
  SNOW_TRY(corrupt_if(check_name("host", member.name)));
  SNOW_ASSIGN(member.address, json_string(value, "address", kMaxTextBytes));
  SNOW_ASSIGN(member.joined_ms, json_number(value, "joined_ms", kMaxNumber));
  SNOW_ASSIGN(member.generation, json_number(value, "generation", kMaxNumber));
  SNOW_ASSIGN(member.drain, json_bool(value, "drain"));
  return {};
}

Result<void> read_host(const json& value, HostRecord& host) {
  SNOW_TRY(corrupt_if(check_host_id(host.id)));
  SNOW_ASSIGN(host.name, json_string(value, "name", kMaxTextBytes));
  SNOW_TRY(corrupt_if(check_name("host", host.name)));
  SNOW_ASSIGN(host.address, json_string(value, "address", kMaxTextBytes));
  SNOW_ASSIGN(host.session, json_string(value, "session", kMaxTextBytes));
  SNOW_ASSIGN(host.instance, json_string(value, "instance", kMaxTextBytes));
  SNOW_ASSIGN(host.machine, json_string(value, "machine", kMaxTextBytes));
  SNOW_ASSIGN(host.lease, json_number(value, "lease", kMaxNumber));
  SNOW_ASSIGN(host.generation, json_number(value, "generation", kMaxNumber));
  SNOW_ASSIGN(host.since_ms, json_number(value, "since_ms", kMaxNumber));
  SNOW_ASSIGN(host.capacity, resources_of(value, "capacity"));
  SNOW_ASSIGN(host.used, resources_of(value, "used"));
  SNOW_ASSIGN(host.qemu, json_string(value, "qemu", kMaxTextBytes));
  SNOW_ASSIGN(host.accelerator, json_string(value, "accelerator", kMaxTextBytes));
  SNOW_ASSIGN(host.data, data_of(value, "data"));
  return {};
}

Result<void> read_vm(const json& value, VmRecord& vm) {
  SNOW_TRY(corrupt_if(check_name("VM", vm.id)));
  SNOW_ASSIGN(vm.host, json_string(value, "host", kMaxTextBytes));
  SNOW_TRY(corrupt_if(check_host_id(vm.host)));
  SNOW_ASSIGN(vm.generation, json_number(value, "generation", kMaxNumber - 1));
  SNOW_ASSIGN(const std::string state, json_string(value, "state", kMaxTextBytes));
  if (state != "owned" && state != "lost") return fail(Code::corrupt, "'state' is '{}'", state);
  vm.state = state == "owned" ? VmRecord::State::owned : VmRecord::State::lost;
  SNOW_ASSIGN(vm.change, json_string(value, "change", kMaxTextBytes));
  SNOW_ASSIGN(vm.info, data_of(value, "info"));
  return {};
}

}  // namespace

Result<void> check_host_id(std::string_view id) {
  if (id.size() == 13 && id[0] == 'h' &&
      id.find_first_not_of("0123456789abcdef", 1) == std::string_view::npos) {
    return {};
  }
  return fail(Code::invalid, "host id '{}': not 'h' and 12 hexadecimal digits",
              printable_key(id.substr(0, 40)));
}

std::string member_key(std::string_view id) { return fmt::format("member/{}", id); }
std::string host_key(std::string_view id) { return fmt::format("host/{}", id); }
std::string vm_key(std::string_view id) { return fmt::format("vm/{}", id); }
std::string host_name_key(std::string_view name) { return fmt::format("hostname/{}", name); }

json to_json(const Member& member) {
  return {{"version", kVersion},
          {"name", member.name},
          {"address", member.address},
          {"joined_ms", member.joined_ms},
          {"generation", member.generation},
          {"drain", member.drain}};
}

json to_json(const HostRecord& host) {
  return {{"version", kVersion},
          {"name", host.name},
          {"address", host.address},
          {"session", host.session},
          {"instance", host.instance},
          {"machine", host.machine},
          {"lease", host.lease},
          {"generation", host.generation},
          {"since_ms", host.since_ms},
          {"capacity", resources_json(host.capacity)},
          {"used", resources_json(host.used)},
          {"qemu", host.qemu},
          {"accelerator", host.accelerator},
          {"data", host.data}};
}

json to_json(const VmRecord& vm) {
  return {{"version", kVersion},
          {"host", vm.host},
          {"generation", vm.generation},
          {"state", vm.state == VmRecord::State::owned ? "owned" : "lost"},
          {"change", vm.change},
          {"info", vm.info}};
}

Result<Member> parse_member(const Directory::Entry& entry) {
  return parse<Member>(entry, "member/", read_member);
}
Result<HostRecord> parse_host(const Directory::Entry& entry) {
  return parse<HostRecord>(entry, "host/", read_host);
}
Result<VmRecord> parse_vm(const Directory::Entry& entry) {
  return parse<VmRecord>(entry, "vm/", read_vm);
}

Result<std::string> check_data(std::string_view what, const json& data) {
  if (!data.is_object()) return fail(Code::invalid, "'{}' is not a JSON object", what);
  std::string text = data.dump(-1, ' ', false, json::error_handler_t::replace);
  // One level less: it becomes a member of a value.
  if (text.size() > kMaxDataBytes || !nested_within("[" + text + "]", kMaxJsonDepth)) {
    return fail(Code::invalid, "'{}' has {} bytes; at most {}, nested {} deep, are allowed", what,
                text.size(), kMaxDataBytes, kMaxJsonDepth - 1);
  }
  return text;
}

}  // namespace snow
