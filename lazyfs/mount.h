// Mounts lazyfs, finds out what is mounted at a place already, and checks a descriptor that is to
// be taken over. Needs CAP_SYS_ADMIN. Thread-safe.
#pragma once

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace snow {

// A new mount at `mount_point` (made if missing); the result is its /dev/fuse, on which INIT waits.
// A dead FUSE mount there (its server is gone) is unmounted first; any other mount is Code::exists.
Result<Fd> mount_fuse(const std::string& mount_point);

// A duplicate of `fuse_fd`, if it is /dev/fuse of a mount that is still alive; Code::host_failed
// otherwise.
Result<Fd> take_over_fuse(int fuse_fd, const std::string& mount_point);

// Lazy: who has a file open goes on. Not mounted is fine.
void unmount_fuse(const std::string& mount_point);

// The file system type mounted at `mount_point` ("fuse.snow"), the topmost one; "" if none. Never
// touches the mount itself, which may not answer.
Result<std::string> mounted_type(const std::string& mount_point);

// How far the kernel reads ahead of a reader of this mount, in KiB; holds for files that are opened
// from now on.
Result<void> set_mount_readahead(const std::string& mount_point, unsigned kib);

}  // namespace snow
