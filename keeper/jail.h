// A QEMU's jail, after Firecracker's jailer: namespaces of its own, a small read-only root, a user
// without any capability. Built by the child itself between fork and exec, so nothing of it is ever
// seen by the rest of the host and nothing is left when the process ends.
//
// What the jailed process sees: /usr (and /lib, /bin ... as the host has them), the dynamic
// linker's cache, five device nodes (and /dev/kvm if asked), and what SpawnSpec::binds adds; no
// /proc, /sys, /tmp, /home. Nothing it sees is writable but the binds that say so.
#pragma once

#include <sys/types.h>

#include "base/result.h"
#include "keeper/client.h"

namespace snow {

// For a freshly forked, single-threaded child only. Moves it into the jail that `spec` (checked by
// check_spawn_spec; the folder spec.root is there and empty) asks for and gives up all rights; what
// is left to do is exec. `keeper` is its parent, with which it dies. An error names the step; the
// child must then exit.
//
// Sources of binds must have no symbolic link in their path (Code::denied): a VM that owns a folder
// on that path could otherwise choose what the keeper, as root, binds. For the same reason targets
// are made without following links.
Result<void> enter_jail(const SpawnSpec& spec, pid_t keeper);

}  // namespace snow
