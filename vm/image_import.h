// Turns a disk image of any common format into a sparse raw file. The source may be hostile: an
// image that refers to other files (backing file, data file, extents) or is encrypted is refused,
// before qemu-img opens it where the format allows that.
#pragma once

#include <string>

#include "base/result.h"

namespace snow {

// `into` must not exist. Code::not_found, ::invalid (not an image; refers to other files;
// encrypted),
// ::corrupt (truncated or damaged), ::host_failed (disk full, unreadable). May leave a part of
// `into` behind on failure: the caller removes its folder. Thread-safe.
Result<void> import_disk(const std::string& source, const std::string& into);

// Copies a regular file, sharing its blocks where the file system can. `what` is for messages.
// Code::not_found, ::invalid (not a regular file, empty, over `limit_bytes`), ::host_failed.
Result<void> copy_regular_file(const std::string& what, const std::string& source,
                               const std::string& into, uint64_t limit_bytes);

}  // namespace snow
