// Reads which ranges of a qcow2 overlay are allocated, and where they lie in its file, so that a
// frozen overlay can be a layer (docs/interop/qcow2.txt of QEMU). For overlays that QEMU wrote from
// our template: version 3, no encryption, compression, internal snapshots, external data file or
// extended L2 entries; anything else is Code::corrupt, with the feature named. An overlay that
// nobody closed (the dirty bit: only reference counts are stale) is fine; one that QEMU has marked
// corrupt is not. The backing file's name is not looked at.
//
// QEMU must have flushed it: a machine that was stopped through QMP has.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "image/extent_map.h"

namespace snow {

struct Qcow2Map {
  uint64_t virtual_size = 0;  // bytes
  std::vector<Extent>
      extents;  // sorted, joined; layer 0 with layer_offset in the file, or kZeroLayer
};

// The bytes come from `fd`; every offset and size in them is checked against the file's end. A
// virtual size that is not `expected_size` is Code::corrupt: give it where the extents are to lie
// within an image. One read per L2 table that is in use (512 MiB of disk with QEMU's default).
Result<Qcow2Map> read_qcow2_map(int fd, const std::string& name,
                                std::optional<uint64_t> expected_size = std::nullopt);

}  // namespace snow
