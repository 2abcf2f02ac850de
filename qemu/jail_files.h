// Opens what a QEMU made in its /vm/run, from outside the jail. A guest that has taken over its
// QEMU can put anything there in place of what we expect; a symbolic link to another program's
// socket or file is the worst. Nothing here follows one in the last component of a path; the
// folders above must be the daemon's own. Thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace snow {

// Connects to a listening unix stream socket. Code::unavailable when it is not there or nobody
// listens, Code::denied when something else than a socket is in its place.
Result<Fd> connect_jail_socket(const std::string& path);

// Reads a regular file of at most `limit_bytes` whole and removes it. Code::corrupt when it is
// longer or something else than a file.
Result<std::vector<std::byte>> take_jail_file(const std::string& path, size_t limit_bytes);

}  // namespace snow
