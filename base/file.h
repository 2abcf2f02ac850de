// Small files, whole: read, written atomically, listed; random names; the clock in milliseconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace snow {

// At most `limit_bytes`; a longer file is Code::invalid, a missing one Code::not_found.
Result<std::string> read_file(const std::string& path, size_t limit_bytes = size_t{64} << 20);

// Written beside its place, synced and renamed: a reader sees the old content or the new one.
Result<void> write_file(const std::string& path, std::string_view content, unsigned mode = 0644);

// mkdir -p. `mode` is the last folder's.
Result<void> make_folders(const std::string& path, unsigned mode = 0755);

// Removes a file or folder with all that is in it; a path that is not there is fine.
void remove_all(const std::string& path);

std::string random_hex(size_t bytes);  // from getrandom(2); 2 * bytes characters
std::string random_uuid();             // RFC 4122, version 4
std::vector<std::byte> random_bytes(size_t count);

int64_t monotonic_ns();   // CLOCK_MONOTONIC
int64_t wall_clock_ns();  // CLOCK_REALTIME

}  // namespace snow
