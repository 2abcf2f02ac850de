// The clock that leases are counted by. A seam: tests bring their own.
#pragma once

#include <cstdint>
#include <functional>

namespace snow {

using Clock = std::function<int64_t()>;  // nanoseconds from some moment; never goes back

// CLOCK_BOOTTIME: monotonic, and it goes on while the host sleeps. A host that wakes up must know
// that its lease is over.
int64_t lease_clock_ns();

constexpr int64_t kSecondNs = 1'000'000'000;

}  // namespace snow
