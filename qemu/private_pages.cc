#include "qemu/private_pages.h"

#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <span>
#include <string>

#include "base/fd.h"
#include "base/file.h"

namespace snow {

namespace {

constexpr uint64_t kPageBytes = 4096;

// linux/fs.h since 6.7; Debian 12's headers are older.
struct ScanRegion {
  __u64 start;
  __u64 end;
  __u64 categories;
};
struct ScanArguments {
  __u64 size;
  __u64 flags;
  __u64 start;
  __u64 end;
  __u64 walk_end;
  __u64 vec;
  __u64 vec_len;
  __u64 max_pages;
  __u64 category_inverted;
  __u64 category_mask;
  __u64 category_anyof_mask;
  __u64 return_mask;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArguments);
constexpr __u64 kScanFile = 1u << 2;  // page of a file, not anonymous
constexpr __u64 kScanPresent = 1u << 3;
constexpr __u64 kScanSwapped = 1u << 4;

// One entry of the plain file.
constexpr uint64_t kEntryFile = uint64_t{1} << 61;
constexpr uint64_t kEntrySwapped = uint64_t{1} << 62;
constexpr uint64_t kEntryPresent = uint64_t{1} << 63;

constexpr size_t kRegionsPerCall = 8192;   // 192 KiB
constexpr size_t kEntriesPerRead = 65536;  // 512 KiB, for 256 MiB of memory

void append(std::vector<Range>& ranges, uint64_t offset, uint64_t length) {
  if (!ranges.empty() && ranges.back().offset + ranges.back().length == offset) {
    ranges.back().length += length;
  } else {
    ranges.push_back({offset, length});
  }
}

// False: the kernel has no PAGEMAP_SCAN.
Result<bool> scan(int pagemap, uint64_t address, uint64_t size_bytes, std::vector<Range>& ranges) {
  std::vector<ScanRegion> regions(kRegionsPerCall);
  ScanArguments arguments{};
  arguments.size = sizeof arguments;
  arguments.end = address + size_bytes;
  arguments.vec = reinterpret_cast<uintptr_t>(regions.data());
  arguments.vec_len = regions.size();
  arguments.category_inverted = kScanFile;  // private: not a page of the file,
  arguments.category_mask = kScanFile;
  arguments.category_anyof_mask = kScanPresent | kScanSwapped;  // and there
  arguments.return_mask = kScanPresent | kScanSwapped;
  // Fewer regions than there is room for: the scan came to its end. Otherwise it goes on behind the
  // last region. (walk_end is of no use: Linux 6.18 leaves it at an earlier stop of its own when it
  // came to the end, and what lies behind would be reported twice.)
  for (arguments.start = address; arguments.start < arguments.end;) {
    const int count = ioctl(pagemap, kPagemapScan, &arguments);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == ENOTTY || errno == EINVAL) && arguments.start == address)
      return false;
    if (count < 0) return fail_errno(Code::host_failed, "PAGEMAP_SCAN");
    const std::span<const ScanRegion> got(regions.data(), static_cast<size_t>(count));
    for (const ScanRegion& region : got)
      append(ranges, region.start - address, region.end - region.start);
    if (got.size() < regions.size()) break;
    arguments.start = got.back().end;
  }
  return true;
}

Result<void> read_entries(int pagemap, uint64_t address, uint64_t size_bytes,
                          std::vector<Range>& ranges) {
  std::vector<uint64_t> entries(kEntriesPerRead);
  const uint64_t pages = size_bytes / kPageBytes;
  for (uint64_t page = 0; page < pages;) {
    const size_t wanted = static_cast<size_t>(std::min<uint64_t>(entries.size(), pages - page));
    const ssize_t got =
        pread(pagemap, entries.data(), wanted * sizeof entries[0],
              static_cast<off_t>((address / kPageBytes + page) * sizeof entries[0]));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(Code::host_failed, "pagemap: read failed");
    if (got < static_cast<ssize_t>(sizeof entries[0]))
      return fail(Code::not_found, "pagemap: the process is gone");
    const size_t count = static_cast<size_t>(got) / sizeof entries[0];
    for (size_t i = 0; i < count; ++i) {
      const uint64_t entry = entries[i];
      if ((entry & (kEntryPresent | kEntrySwapped)) != 0 && (entry & kEntryFile) == 0)
        append(ranges, (page + i) * kPageBytes, kPageBytes);
    }
    page += count;
  }
  return {};
}

struct Area {
  uint64_t start = 0;
  uint64_t end = 0;
  bool is_private = false;
  uint64_t offset = 0;
  dev_t device = 0;
  uint64_t inode = 0;
};

// "start-end perms offset major:minor inode path"
std::optional<Area> parse_area(std::string_view line) {
  Area area;
  unsigned major_number = 0;
  unsigned minor_number = 0;
  const auto number = [&](auto& value, int base, char after) {
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value, base);
    if (error != std::errc()) return false;
    line.remove_prefix(static_cast<size_t>(end - line.data()));
    if (line.empty()) return after == ' ';
    const bool as_expected = line.front() == after;
    line.remove_prefix(1);
    return as_expected;
  };
  if (!number(area.start, 16, '-') || !number(area.end, 16, ' ') || line.size() < 5) return {};
  area.is_private = line[3] == 'p';
  line.remove_prefix(5);
  if (!number(area.offset, 16, ' ') || !number(major_number, 16, ':') ||
      !number(minor_number, 16, ' ') || !number(area.inode, 10, ' '))
    return {};
  area.device = makedev(major_number, minor_number);
  return area;
}

}  // namespace

uint64_t PrivatePages::bytes() const {
  uint64_t sum = 0;
  for (const Range& range : ranges) sum += range.length;
  return sum;
}

Result<uint64_t> find_mapping(std::string_view maps, uint64_t inode, uint64_t size_bytes,
                              dev_t device) {
  std::optional<uint64_t> address;
  uint64_t covered = 0;  // maps is sorted by address, so pieces come in the order of the image
  while (!maps.empty()) {
    const size_t newline = std::min(maps.find('\n'), maps.size() - 1);
    const auto area = parse_area(maps.substr(0, newline));
    maps.remove_prefix(newline + 1);
    if (!area || area->inode != inode || (device != 0 && area->device != device)) continue;
    if (!area->is_private)
      return fail(Code::wrong_state, "inode {}: mapped shared; only a thawed VM has private pages",
                  inode);
    if (!address) address = area->start - area->offset;
    if (area->start - area->offset != *address || area->offset != covered)
      return fail(Code::wrong_state, "inode {}: not mapped in one piece (at {:#x}, offset {:#x})",
                  inode, area->start, area->offset);
    covered += area->end - area->start;
  }
  if (!address) return fail(Code::not_found, "inode {}: the process does not map it", inode);
  if (covered != size_bytes)
    return fail(Code::wrong_state, "inode {}: {} bytes are mapped, not {}", inode, covered,
                size_bytes);
  return *address;
}

Result<PrivatePages> find_private_pages(pid_t pid, uint64_t inode, uint64_t size_bytes,
                                        bool use_pagemap_scan, dev_t device) {
  if (size_bytes % kPageBytes != 0)
    return fail(Code::invalid, "memory image of {} bytes: not whole pages", size_bytes);
  SNOW_ASSIGN(const std::string maps, read_file(fmt::format("/proc/{}/maps", pid)));
  PrivatePages found;
  SNOW_ASSIGN(found.address, find_mapping(maps, inode, size_bytes, device));
  const std::string path = fmt::format("/proc/{}/pagemap", pid);
  const Fd pagemap(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap) return fail_errno(Code::host_failed, "{}: cannot open", path);
  if (use_pagemap_scan) {
    SNOW_ASSIGN(const bool scanned, scan(pagemap.get(), found.address, size_bytes, found.ranges));
    if (scanned) return found;
  }
  SNOW_TRY(read_entries(pagemap.get(), found.address, size_bytes, found.ranges));
  return found;
}

}  // namespace snow
