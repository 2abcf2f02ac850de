// The rate of the host's time stamp counter, which under TCG is the guest's as well.
#pragma once

#include <cstdint>

namespace snow {

// kHz, to about 10 ppm. Measured once per process, in 20 ms; thread-safe.
uint64_t host_tsc_khz();

}  // namespace snow
