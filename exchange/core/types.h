// Words that both halves of the exchange's decision core use. See docs/cluster.md, "The exchange".
//
// The core is free of I/O, threads, clocks and randomness that is not seeded: it is fed with events
// and the time (nanoseconds of any monotonic clock) and gives back actions. Production drives it
// with sockets, sim/ with simulated hosts. None of its classes is thread-safe: a mutex for each
// image is the caller's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace snow::exchange {

inline constexpr uint32_t kPageBytes = 4096;
// An ask and an answer speak of at most so many pages in a row.
inline constexpr uint32_t kMaxRunPages = 64;

// Hosts are small numbers here; the caller keeps the table from ids to numbers (one for a whole
// daemon). A number may be given to another host after Origin::forget_host and
// Receiver::forget_host.
using HostNumber = uint16_t;
inline constexpr HostNumber kNoHost = 0xffff;

using Nanos = int64_t;
inline constexpr Nanos kMicrosecond = 1'000;
inline constexpr Nanos kMillisecond = 1'000'000;
inline constexpr Nanos kSecond = 1'000'000'000;
inline constexpr Nanos kNever = INT64_MAX;

// Pages [first, first + count).
struct Run {
  uint32_t first = 0;
  uint32_t count = 0;
  bool operator==(const Run&) const = default;
  [[nodiscard]] uint32_t end() const { return first + count; }
  [[nodiscard]] bool contains(uint32_t page) const { return page - first < count; }
};

// In order of priority. Each has its own connections and threads, so that a demand never queues
// behind bulk.
enum class Lane : uint8_t { demand, hot, background };

}  // namespace snow::exchange
