// Wall-clock times as people and the API read them. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

namespace snow {

// "2026-05-01T12:34:56.789Z": RFC 3339, UTC, milliseconds.
std::string rfc3339(int64_t wall_ns);

}  // namespace snow
