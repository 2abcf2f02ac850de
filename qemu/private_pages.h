// Finds, from outside, the pages of a memory image that a QEMU has written since its thaw: the
// private anonymous pages of its MAP_PRIVATE mapping (Documentation/admin-guide/mm/pagemap.rst).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "image/extent_map.h"

namespace snow {

struct PrivatePages {
  uint64_t address = 0;       // where the image's byte 0 is mapped in the process
  std::vector<Range> ranges;  // image offsets, sorted, joined
  [[nodiscard]] uint64_t bytes() const;
};

// `inode`: the mapped lazyfs file's. The process should be stopped (its guest, that is): pages that
// become private during the scan may be missed. Uses PAGEMAP_SCAN (Linux 6.7) where the kernel has
// it, the plain file otherwise; swapped pages count as private.
Result<PrivatePages> find_private_pages(pid_t pid, uint64_t inode, uint64_t size_bytes,
                                        bool use_pagemap_scan = true);

}  // namespace snow
