#include "qemu/host_clock.h"

#include <unistd.h>
#include <x86intrin.h>

#include <limits>

#include "base/file.h"

namespace snow {

namespace {

struct Reading {
  int64_t ns = 0;
  uint64_t ticks = 0;
};

// Both clocks at the same moment: of several tries the one that was disturbed least.
Reading read_both() {
  Reading best;
  int64_t least_ns = std::numeric_limits<int64_t>::max();
  for (int i = 0; i < 20; ++i) {
    const int64_t before_ns = monotonic_ns();
    const uint64_t ticks = __rdtsc();
    const int64_t took_ns = monotonic_ns() - before_ns;
    if (took_ns < least_ns) {
      least_ns = took_ns;
      best = {before_ns + took_ns / 2, ticks};
    }
  }
  return best;
}

uint64_t measure() {
  const Reading begin = read_both();
  usleep(20'000);
  const Reading end = read_both();
  return (end.ticks - begin.ticks) * 1'000'000 / static_cast<uint64_t>(end.ns - begin.ns);
}

}  // namespace

uint64_t host_tsc_khz() {
  static const uint64_t khz = measure();
  return khz;
}

}  // namespace snow
