// What a VM is made of, and the QEMU command line that follows. The same configuration gives the
// same virtual hardware at boot and at every thaw; only the paths, the memory file's sharing and
// `-incoming defer` differ.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/result.h"

namespace snow {

enum class MachineType { microvm, q35 };
enum class Accelerator { kvm, tcg };
enum class Network { none, user };

struct MachineConfig {
  MachineType machine = MachineType::microvm;
  Accelerator accelerator = Accelerator::tcg;
  uint64_t memory_bytes = 256u << 20;  // a multiple of 2 MiB
  unsigned cpus = 1;
  Network network = Network::none;
  bool has_disk = false;
  bool has_kernel = false;    // microvm needs one
  bool has_initrd = false;
  std::string append;         // kernel command line
  std::string boot_sector;    // unused unless no kernel: q35 boots the disk by its BIOS
};

nlohmann::json to_json(const MachineConfig& config);
Result<MachineConfig> machine_config_from_json(const nlohmann::json& json);

// Paths inside the jail. The VM's own folder is /vm.
struct JailPaths {
  static constexpr const char* kMemory = "/vm/memory";        // tmpfs file (boot) or lazyfs file
  static constexpr const char* kOverlay = "/vm/overlay.qcow2";  // backing file: kDisk
  static constexpr const char* kDisk = "/vm/disk.raw";
  static constexpr const char* kKernel = "/vm/kernel";
  static constexpr const char* kInitrd = "/vm/initrd";
  static constexpr const char* kQmp = "/vm/run/qmp.sock";
  static constexpr const char* kAgent = "/vm/run/agent.sock";
  static constexpr const char* kConsole = "/vm/run/console.sock";
  static constexpr const char* kIncoming = "/vm/run/incoming.sock";
  static constexpr const char* kState = "/vm/run/state";      // machine state is saved here
};

struct Launch {
  enum class Kind { boot, thaw } kind = Kind::boot;
  std::string name;       // the VM's, for -name
  std::string uuid;       // SMBIOS (q35)
  std::string mac;        // with Network::user
};

// argv[0] is `qemu` (absolute path). The sandbox (-sandbox on,...) is always on.
std::vector<std::string> command_line(const std::string& qemu, const MachineConfig& config,
                                      const Launch& launch);

// accel=auto: KVM where /proc/cpuinfo has vmx or svm and /dev/kvm opens, TCG otherwise.
struct AcceleratorChoice {
  Accelerator accelerator;
  std::string reason;  // "no vmx or svm in /proc/cpuinfo"
};
AcceleratorChoice choose_accelerator();

}  // namespace snow
