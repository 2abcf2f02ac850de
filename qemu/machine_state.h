// Machine state without RAM: saved by xen-save-devices-state, loaded through the door of an incoming
// migration (xen-load-devices-state aborts in QEMU 7.2).
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/result.h"
#include "qemu/qmp.h"

namespace snow {

// The VM must be stopped. `host_path` is where JailPaths::kState lies on the host. The file is
// removed after it was read. At most 64 MiB.
Result<std::vector<std::byte>> save_machine_state(Qmp& qmp, const std::string& host_path);

// Into a QEMU that was started with -S -incoming defer. `incoming_host_path` is where
// JailPaths::kIncoming lies on the host. Returns when the state is loaded and QEMU is ready for
// `cont`.
Result<void> load_machine_state(Qmp& qmp, const std::string& incoming_host_path,
                                const std::vector<std::byte>& state, int timeout_ms = 30'000);

}  // namespace snow
