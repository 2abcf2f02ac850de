#include "qemu/machine.h"

#include <fcntl.h>

#include <array>
#include <utility>

#include "base/fd.h"
#include "base/file.h"

namespace snow {

namespace {

template <class T, size_t N>
using Names = std::array<std::pair<T, std::string_view>, N>;

constexpr Names<MachineType, 2> kMachines = {
    {{MachineType::microvm, "microvm"}, {MachineType::q35, "q35"}}};
constexpr Names<Accelerator, 2> kAccelerators = {
    {{Accelerator::kvm, "kvm"}, {Accelerator::tcg, "tcg"}}};
constexpr Names<Network, 2> kNetworks = {{{Network::none, "none"}, {Network::user, "user"}}};

template <class T, size_t N>
std::string_view name_of(const Names<T, N>& names, T value) {
  for (const auto& [known, name] : names) {
    if (known == value) return name;
  }
  return "?";
}

template <class T, size_t N>
Result<T> value_of(const Names<T, N>& names, const char* field, std::string_view text) {
  std::string choices;
  for (const auto& [value, name] : names) {
    if (name == text) return value;
    choices += (choices.empty() ? "" : " or ") + std::string(name);
  }
  return fail(Code::invalid, "{} '{}': unknown; use {}", field, text, choices);
}

// Each reads one field of its own kind; none has a default, so that a record cut short is noticed.
Result<std::string> text_field(const nlohmann::json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_string())
    return fail(Code::corrupt, "machine configuration: '{}' is missing or not a string", field);
  return found->get<std::string>();
}
Result<uint64_t> number_field(const nlohmann::json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_number_unsigned())
    return fail(Code::corrupt, "machine configuration: '{}' is missing or not a whole number",
                field);
  return found->get<uint64_t>();
}
Result<bool> flag_field(const nlohmann::json& json, const char* field) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_boolean())
    return fail(Code::corrupt, "machine configuration: '{}' is missing or not true or false",
                field);
  return found->get<bool>();
}

bool has_word(std::string_view text, std::string_view word) {
  constexpr std::string_view kSpace = " \t\n";
  for (size_t at = text.find(word); at != std::string_view::npos; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    const bool begins = at == 0 || kSpace.find(text[at - 1]) != std::string_view::npos;
    const bool ends = end == text.size() || kSpace.find(text[end]) != std::string_view::npos;
    if (begins && ends) return true;
  }
  return false;
}

}  // namespace

std::string_view machine_name(MachineType machine) { return name_of(kMachines, machine); }
std::string_view accelerator_name(Accelerator accelerator) {
  return name_of(kAccelerators, accelerator);
}
std::string_view network_name(Network network) { return name_of(kNetworks, network); }
Result<MachineType> machine_from_name(std::string_view name) {
  return value_of(kMachines, "machine", name);
}
Result<Accelerator> accelerator_from_name(std::string_view name) {
  return value_of(kAccelerators, "accelerator", name);
}
Result<Network> network_from_name(std::string_view name) {
  return value_of(kNetworks, "network", name);
}

Result<void> check(const MachineConfig& config) {
  if (config.memory_bytes < kMinMemory || config.memory_bytes > kMaxMemory ||
      config.memory_bytes % kMemoryStep != 0)
    return fail(Code::invalid, "memory of {} bytes: use a multiple of {} MiB from {} MiB to {} GiB",
                config.memory_bytes, kMemoryStep >> 20, kMinMemory >> 20, kMaxMemory >> 30);
  if (config.cpus < 1 || config.cpus > kMaxCpus)
    return fail(Code::invalid, "{} CPUs: use 1 to {}", config.cpus, kMaxCpus);
  if (config.machine == MachineType::microvm && !config.has_kernel)
    return fail(Code::invalid, "machine microvm needs a kernel; give one or use machine q35");
  if (!config.has_kernel && config.has_initrd)
    return fail(Code::invalid, "an initrd needs a kernel; give one");
  if (!config.has_kernel && !config.append.empty())
    return fail(Code::invalid, "a kernel command line needs a kernel; give one");
  if (config.append.size() > kMaxAppend)
    return fail(Code::invalid, "kernel command line of {} bytes: Linux takes at most {}",
                config.append.size(), kMaxAppend);
  for (const char byte : config.append) {
    if (static_cast<unsigned char>(byte) < ' ' || byte == 0x7f)
      return fail(Code::invalid, "kernel command line: control characters are not allowed");
  }
  return {};
}

nlohmann::json to_json(const MachineConfig& config) {
  return {{"machine", machine_name(config.machine)},
          {"accelerator", accelerator_name(config.accelerator)},
          {"memory_bytes", config.memory_bytes},
          {"cpus", config.cpus},
          {"network", network_name(config.network)},
          {"has_disk", config.has_disk},
          {"has_kernel", config.has_kernel},
          {"has_initrd", config.has_initrd},
          {"append", config.append}};
}

Result<MachineConfig> machine_config_from_json(const nlohmann::json& json) {
  if (!json.is_object()) return fail(Code::corrupt, "machine configuration: not an object");
  MachineConfig config;
  SNOW_ASSIGN(const std::string machine, text_field(json, "machine"));
  SNOW_ASSIGN(config.machine, machine_from_name(machine));
  SNOW_ASSIGN(const std::string accelerator, text_field(json, "accelerator"));
  SNOW_ASSIGN(config.accelerator, accelerator_from_name(accelerator));
  SNOW_ASSIGN(config.memory_bytes, number_field(json, "memory_bytes"));
  SNOW_ASSIGN(const uint64_t cpus, number_field(json, "cpus"));
  if (cpus > kMaxCpus) return fail(Code::invalid, "{} CPUs: use 1 to {}", cpus, kMaxCpus);
  config.cpus = static_cast<unsigned>(cpus);
  SNOW_ASSIGN(const std::string network, text_field(json, "network"));
  SNOW_ASSIGN(config.network, network_from_name(network));
  SNOW_ASSIGN(config.has_disk, flag_field(json, "has_disk"));
  SNOW_ASSIGN(config.has_kernel, flag_field(json, "has_kernel"));
  SNOW_ASSIGN(config.has_initrd, flag_field(json, "has_initrd"));
  SNOW_ASSIGN(config.append, text_field(json, "append"));
  const nlohmann::json known = to_json(config);
  for (const auto& item : json.items()) {
    if (!known.contains(item.key()))
      return fail(Code::corrupt,
                  "machine configuration: unknown field '{}'; was it written by a "
                  "newer version?",
                  item.key());
  }
  SNOW_TRY(check(config));
  return config;
}

AcceleratorChoice choose_accelerator(std::string_view cpuinfo, int kvm_error) {
  const bool vmx = has_word(cpuinfo, "vmx");
  const bool svm = has_word(cpuinfo, "svm");
  if (!vmx && !svm) return {Accelerator::tcg, "no vmx or svm in /proc/cpuinfo"};
  if (kvm_error != 0) return {Accelerator::tcg, fmt::format("/dev/kvm: {}", strerror(kvm_error))};
  return {Accelerator::kvm,
          fmt::format("{} in /proc/cpuinfo and /dev/kvm opens", vmx ? "vmx" : "svm")};
}

AcceleratorChoice choose_accelerator() {
  auto cpuinfo = read_file("/proc/cpuinfo");
  if (!cpuinfo) return {Accelerator::tcg, cpuinfo.error().message};
  const Fd kvm(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  return choose_accelerator(*cpuinfo, kvm ? 0 : errno);
}

}  // namespace snow
