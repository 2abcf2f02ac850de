// Who asks, and files opened with that user's rights. The daemon is root and its callers are not:
// a path in a request says nothing about what the caller may read, so it is opened as the caller,
// and what is opened then is what is used (no second look-up by name).
#pragma once

#include <sys/types.h>

#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace snow {

struct Caller {
  uid_t uid = 0;
  gid_t gid = 0;
  pid_t pid = 0;
};

// The peer of a connected unix socket, by SO_PEERCRED: as it was when it connected.
Result<Caller> caller_of(int fd);

// A file opened for reading on a caller's behalf. `path` is /proc/PID/fd/N of this process: valid
// for this process and its children (also other programs, as root) while the object lives, and it
// is the very file that was checked. `name` is what the caller wrote.
struct CallerFile {
  Fd fd;
  std::string path;
  std::string name;
};

// Opens a regular file or block device with the caller's user, group and supplementary groups
// (setfsuid, of this thread only). Code::denied: the caller may not read it; not_found; invalid:
// not absolute, or a folder, pipe or socket (never waits for a pipe).
Result<CallerFile> open_as(const Caller& caller, const std::string& path);

}  // namespace snow
