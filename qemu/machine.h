// What a VM is made of, and the QEMU command line that follows. The same configuration gives the
// same virtual hardware at boot and at every thaw; only the paths, the memory file's sharing and
// `-incoming defer` differ.
//
// Plain values and functions without state; thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace snow {

enum class MachineType { microvm, q35 };
enum class Accelerator { kvm, tcg };
enum class Network { none, user };

inline constexpr uint64_t kMemoryStep = uint64_t{2} << 20;  // memory is a multiple of this
inline constexpr uint64_t kMinMemory = uint64_t{16} << 20;  // bytes
inline constexpr uint64_t kMaxMemory = uint64_t{1} << 40;   // bytes; what a guest CPU can address
inline constexpr unsigned kMaxCpus = 64;
// Bytes. Linux on x86 takes 2047, of which command_line() may need some for itself.
inline constexpr size_t kMaxAppend = 1983;

struct MachineConfig {
  MachineType machine = MachineType::microvm;
  Accelerator accelerator = Accelerator::tcg;
  uint64_t memory_bytes = 256u << 20;  // a multiple of kMemoryStep
  unsigned cpus = 1;
  Network network = Network::none;
  bool has_disk = false;    // q35 without a kernel boots it by its BIOS
  bool has_kernel = false;  // microvm needs one
  bool has_initrd = false;  // needs a kernel
  std::string append;       // kernel command line; needs a kernel
};

// Code::invalid with the field and its limits. What passes makes a command line that QEMU accepts.
Result<void> check(const MachineConfig& config);

nlohmann::json to_json(const MachineConfig& config);
// Checked as by check(); a missing, unknown or mistyped field is Code::corrupt or invalid.
Result<MachineConfig> machine_config_from_json(const nlohmann::json& json);

std::string_view machine_name(MachineType machine);          // "microvm", "q35"
std::string_view accelerator_name(Accelerator accelerator);  // "kvm", "tcg"
std::string_view network_name(Network network);              // "none", "user"
Result<MachineType> machine_from_name(std::string_view name);
Result<Accelerator> accelerator_from_name(std::string_view name);
Result<Network> network_from_name(std::string_view name);

// Paths inside the jail. The VM's own folder is /vm; what QEMU makes lies in /vm/run. On the host
// nothing below /vm/run is to be trusted: see jail_files.h.
struct JailPaths {
  static constexpr const char* kMemory = "/vm/memory";          // tmpfs file (boot) or lazyfs file
  static constexpr const char* kOverlay = "/vm/overlay.qcow2";  // backing file: kDisk
  static constexpr const char* kDisk = "/vm/disk.raw";
  static constexpr const char* kKernel = "/vm/kernel";
  static constexpr const char* kInitrd = "/vm/initrd";
  static constexpr const char* kQmp = "/vm/run/qmp.sock";
  static constexpr const char* kAgent = "/vm/run/agent.sock";
  static constexpr const char* kConsole = "/vm/run/console.sock";
  static constexpr const char* kIncoming = "/vm/run/incoming.sock";
  static constexpr const char* kState = "/vm/run/state";  // machine state is saved here
};

struct Launch {
  enum class Kind { boot, thaw } kind = Kind::boot;
  std::string name;  // the VM's, for -name
  std::string uuid;  // SMBIOS (q35); empty: none
  std::string mac;   // with Network::user; empty: QEMU's default. A thaw keeps the frozen
                     // machine's MAC (it is part of its state) until the guest sets its own
};

// argv[0] is `qemu` (absolute path). Depends on the host only in its clock rate (TCG) and its kind
// of KVM. The sandbox (-sandbox on,...) is always on. QEMU starts stopped: `cont` starts a boot,
// load_machine_state() and `cont` a thaw. The memory file must exist with exactly
// config.memory_bytes. `config` must have passed check().
std::vector<std::string> command_line(const std::string& qemu, const MachineConfig& config,
                                      const Launch& launch);

// accel=auto: KVM where /proc/cpuinfo has vmx or svm and /dev/kvm opens, TCG otherwise.
struct AcceleratorChoice {
  Accelerator accelerator;
  std::string reason;  // "no vmx or svm in /proc/cpuinfo"
};
AcceleratorChoice choose_accelerator();

// The decision alone. `kvm_error`: errno of opening /dev/kvm, 0 if it opened.
AcceleratorChoice choose_accelerator(std::string_view cpuinfo, int kvm_error);

}  // namespace snow
