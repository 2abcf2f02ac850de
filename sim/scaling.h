// The figures of docs/scaling.md.
#pragma once

#include <cstdint>

namespace snow::sim {

// Prints the tables, up to `most` hosts. 0, or 1 if something did not hold in one of the runs.
int print_scaling(uint64_t most);

}  // namespace snow::sim
