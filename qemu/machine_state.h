// Machine state without RAM: saved by xen-save-devices-state, loaded through the door of an
// incoming migration (xen-load-devices-state aborts in QEMU 7.2).
//
// Both QEMUs must have been started by command_line() with the same configuration, which leaves the
// migration stream's configuration section out (send-configuration=off) and has the loader report
// its progress as events. Thread-safe for different VMs.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "qemu/machine.h"
#include "qemu/qmp.h"

namespace snow {

inline constexpr size_t kMaxStateBytes = size_t{64} << 20;

// The VM must be stopped (`stop` has written out its disk overlay's metadata) and stays as it is:
// `cont` goes on in the same QEMU if the freeze is given up. `host_path` is where `qemu_path` lies
// on the host. The file is removed after it was read. At most kMaxStateBytes.
Result<std::vector<std::byte>> save_machine_state(Qmp& qmp, const std::string& host_path,
                                                  const std::string& qemu_path = JailPaths::kState);

// Opens the door of a QEMU that was started with -S -incoming defer: the socket that takes its
// state. `incoming_host_path` is where `incoming_qemu_path` lies on the host. Done before a pause:
// QEMU reads a command byte by byte, half a millisecond for this one. When the socket is closed
// without a state, QEMU ends.
Result<Fd> open_incoming(Qmp& qmp, const std::string& incoming_host_path,
                         const std::string& incoming_qemu_path = JailPaths::kIncoming);

// Into that socket. Returns when the state is loaded and QEMU is ready for `cont`. On
// Code::guest_failed (QEMU refused the state: it has ended or will) and on Code::timed_out the QEMU
// is of no use any more.
Result<void> load_machine_state(Qmp& qmp, Fd incoming, const std::vector<std::byte>& state,
                                int timeout_ms = 30'000);

}  // namespace snow
