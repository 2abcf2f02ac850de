// Finds, from outside, the pages of a memory image that a QEMU has written since its thaw: the
// private anonymous pages of its MAP_PRIVATE mapping (Documentation/admin-guide/mm/pagemap.rst).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "image/extent_map.h"

namespace snow {

struct PrivatePages {
  uint64_t address = 0;       // where the image's byte 0 is mapped in the process
  std::vector<Range> ranges;  // image offsets, sorted, joined
  [[nodiscard]] uint64_t bytes() const;
};

// `inode`: the mapped lazyfs file's. `device`: its file system's st_dev; 0: any (inode numbers of
// two file systems may be the same). The process should be stopped (its guest, that is): pages that
// become private during the scan may be missed. Uses PAGEMAP_SCAN (Linux 6.7) where the kernel has
// it, the plain file otherwise; swapped pages count as private. Code::not_found when the process is
// gone or does not map the file, Code::wrong_state when it maps it shared or not as one piece.
// Thread-safe. For 2.5 GiB some 40 ms of CPU time with 560,000 scattered pages, 20 ms with few
// (private_pages_test with SNOW_BIG_TEST, on a busy host).
Result<PrivatePages> find_private_pages(pid_t pid, uint64_t inode, uint64_t size_bytes,
                                        bool use_pagemap_scan = true, dev_t device = 0);

// The mapping alone, from the text of /proc/PID/maps: the address of the image's byte 0. It may
// consist of several areas (madvise and mprotect split it); together they must show every byte of
// the file at the same distance.
Result<uint64_t> find_mapping(std::string_view maps, uint64_t inode, uint64_t size_bytes,
                              dev_t device = 0);

}  // namespace snow
