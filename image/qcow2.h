// Reads which ranges of a qcow2 overlay are allocated, and where they lie in its file, so that a
// frozen overlay can be a layer (docs/interop/qcow2.txt of QEMU). For overlays that QEMU wrote from
// our template: version 3, no encryption, compression, internal snapshots, external data file or
// extended L2 entries; anything else is Code::corrupt, with the feature named.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "image/extent_map.h"

namespace snow {

struct Qcow2Map {
  uint64_t virtual_size = 0;    // bytes
  std::vector<Extent> extents;  // sorted; layer 0 with layer_offset in the file, or kZeroLayer
};

// The bytes come from `fd`; every offset and size in them is checked against the file's end.
Result<Qcow2Map> read_qcow2_map(int fd, const std::string& name);

}  // namespace snow
