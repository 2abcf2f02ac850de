#include "cluster/clock.h"

#include <ctime>

namespace snow {

int64_t lease_clock_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<int64_t>(now.tv_sec) * kSecondNs + now.tv_nsec;
}

}  // namespace snow
