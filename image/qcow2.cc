#include "image/qcow2.h"

#include <endian.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "base/fd.h"

namespace snow {
namespace {

constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
constexpr size_t kHeaderBytes = 104;     // of version 3, without its optional fields
constexpr uint32_t kMinClusterBits = 9;
constexpr uint32_t kMaxClusterBits = 21;
constexpr uint64_t kMaxL1Bytes = uint64_t{32} << 20;  // QEMU's own limit

constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;  // bits 9 to 55
constexpr uint64_t kCopied = uint64_t{1} << 63;  // may be written in place: nothing to a reader
constexpr uint64_t kCompressed = uint64_t{1} << 62;
constexpr uint64_t kZero = 1;

enum IncompatibleFeature : uint64_t {
  kDirty = 1,
  kCorrupt = 2,
  kExternalData = 4,
  kCompressionType = 8,
  kExtendedL2 = 16,
};

struct Header {
  uint64_t virtual_size;
  uint32_t cluster_bits;
  uint32_t l1_size;    // entries
  uint64_t l1_offset;  // in the file
};

uint32_t field32(const std::byte* header, size_t at) {
  uint32_t value;
  std::memcpy(&value, header + at, sizeof value);
  return be32toh(value);
}

uint64_t field64(const std::byte* header, size_t at) {
  uint64_t value;
  std::memcpy(&value, header + at, sizeof value);
  return be64toh(value);
}

// The first thing in a header that we do not read; null if there is none.
const char* unsupported(const std::byte* header) {
  const uint64_t features = field64(header, 72);
  if (field32(header, 4) != 3) return "a version other than 3";
  if (field32(header, 32) != 0) return "encryption";
  if (field32(header, 60) != 0) return "internal snapshots";
  if ((features & kCorrupt) != 0) return "QEMU's mark that it is damaged";
  if ((features & kExternalData) != 0) return "an external data file";
  if ((features & kCompressionType) != 0) return "a compression type";
  if ((features & kExtendedL2) != 0) return "extended L2 entries";
  if ((features & ~uint64_t{kDirty}) != 0) return "an unknown incompatible feature";
  if (field32(header, 20) < kMinClusterBits || field32(header, 20) > kMaxClusterBits) {
    return "an impossible cluster size";
  }
  if (field64(header, 24) > INT64_MAX) return "an impossible size";
  return nullptr;
}

class Reader {
 public:
  Reader(int fd, const std::string& name, uint64_t file_size)
      : fd_(fd), name_(name), file_size_(file_size) {}

  Result<Qcow2Map> read(std::optional<uint64_t> expected_size) {
    SNOW_TRY(read_header());
    if (expected_size && *expected_size != header_.virtual_size) {
      return fail(Code::corrupt, "qcow2 {}: a disk of {} bytes where {} are expected", name_,
                  header_.virtual_size, *expected_size);
    }
    SNOW_ASSIGN(const std::vector<uint64_t> l1, read_l1());
    SNOW_TRY(check_l1(l1));
    map_.virtual_size = header_.virtual_size;
    std::vector<uint64_t> l2(cluster_bytes() / sizeof(uint64_t));
    const uint64_t bytes_per_table = l2.size() << header_.cluster_bits;
    for (size_t i = 0; i < l1.size(); ++i) {
      if (l1[i] == 0) continue;
      SNOW_TRY(read_all_at(fd_, l1[i], std::as_writable_bytes(std::span(l2)), name_));
      SNOW_TRY(add_table(l2, i * bytes_per_table));
    }
    return std::move(map_);
  }

 private:
  [[nodiscard]] uint64_t cluster_bytes() const { return uint64_t{1} << header_.cluster_bits; }
  [[nodiscard]] bool in_file(uint64_t offset, uint64_t length) const {
    return offset <= file_size_ && length <= file_size_ - offset;
  }

  Result<void> read_header() {
    std::byte header[kHeaderBytes] = {};
    if (file_size_ < kHeaderBytes) {
      return fail(Code::corrupt, "qcow2 {}: {} bytes are too few", name_, file_size_);
    }
    SNOW_TRY(read_all_at(fd_, 0, header, name_));
    if (field32(header, 0) != kMagic) return fail(Code::corrupt, "{}: not a qcow2 file", name_);
    if (const char* feature = unsupported(header)) {
      return fail(Code::corrupt, "qcow2 {}: it has {}, which an overlay of ours never has", name_,
                  feature);
    }
    header_ = {field64(header, 24), field32(header, 20), field32(header, 36), field64(header, 40)};
    return {};
  }

  // The L1 table as file offsets of L2 tables; 0: nothing is allocated there.
  Result<std::vector<uint64_t>> read_l1() {
    const uint32_t table_bits = 2 * header_.cluster_bits - 3;  // of disk, per L2 table
    const uint64_t entries = (header_.virtual_size >> table_bits) +
                             ((header_.virtual_size & ((uint64_t{1} << table_bits) - 1)) != 0);
    const uint64_t bytes = entries * sizeof(uint64_t);
    if (entries > header_.l1_size || bytes > kMaxL1Bytes || !in_file(header_.l1_offset, bytes)) {
      return fail(Code::corrupt, "qcow2 {}: its L1 table does not fit the disk or the file", name_);
    }
    std::vector<uint64_t> l1(entries);
    SNOW_TRY(read_all_at(fd_, header_.l1_offset, std::as_writable_bytes(std::span(l1)), name_));
    for (size_t i = 0; i < l1.size(); ++i) {
      const uint64_t entry = be64toh(l1[i]);
      l1[i] = entry & kOffsetMask;
      if ((entry & ~(kOffsetMask | kCopied)) != 0 || l1[i] % cluster_bytes() != 0 ||
          (l1[i] != 0 && !in_file(l1[i], cluster_bytes()))) {
        return fail(Code::corrupt, "qcow2 {}: L1 entry {} is {:#x}", name_, i, entry);
      }
    }
    return l1;
  }

  // No table twice, so that the work is bounded by the size of the file.
  Result<void> check_l1(std::vector<uint64_t> l1) {
    std::sort(l1.begin(), l1.end());
    const auto used = std::upper_bound(l1.begin(), l1.end(), 0u);
    if (std::adjacent_find(used, l1.end()) != l1.end()) {
      return fail(Code::corrupt, "qcow2 {}: an L2 table is used twice", name_);
    }
    return {};
  }

  // `begin`: the offset on the disk that the table starts at.
  Result<void> add_table(std::span<const uint64_t> l2, uint64_t begin) {
    for (size_t i = 0; i < l2.size(); ++i) {
      if (l2[i] == 0) continue;
      const uint64_t entry = be64toh(l2[i]);
      const uint64_t at = begin + (i << header_.cluster_bits);
      if (at >= header_.virtual_size) break;
      const uint64_t length = std::min(cluster_bytes(), header_.virtual_size - at);
      const uint64_t place = entry & kOffsetMask;
      const char* wrong = nullptr;
      if ((entry & kCompressed) != 0) {
        wrong = "is compressed, as an overlay of ours never is";
      } else if ((entry & ~(kOffsetMask | kCopied | kZero)) != 0) {
        wrong = "has reserved bits set";
      } else if (place % cluster_bytes() != 0) {
        wrong = "lies between clusters";
      } else if ((entry & kZero) == 0 && !in_file(place, length)) {
        wrong = "lies past the end of the file: truncated?";
      }
      if (wrong != nullptr) {
        return fail(Code::corrupt, "qcow2 {}: the cluster of disk offset {} {}", name_, at, wrong);
      }
      if ((entry & kZero) != 0) {
        add({at, length, kZeroLayer, 0});
      } else if (place != 0) {
        add({at, length, 0, place});
      }
    }
    return {};
  }

  void add(const Extent& extent) {
    if (!map_.extents.empty()) {
      Extent& last = map_.extents.back();
      if (last.end() == extent.offset && last.layer == extent.layer &&
          (extent.layer == kZeroLayer || last.layer_offset + last.length == extent.layer_offset)) {
        last.length += extent.length;
        return;
      }
    }
    map_.extents.push_back(extent);
  }

  const int fd_;
  const std::string& name_;
  const uint64_t file_size_;
  Header header_{};
  Qcow2Map map_;
};

}  // namespace

Result<Qcow2Map> read_qcow2_map(int fd, const std::string& name,
                                std::optional<uint64_t> expected_size) {
  struct stat status {};
  if (::fstat(fd, &status) < 0) return fail_errno(Code::host_failed, "qcow2 {}: fstat", name);
  return Reader(fd, name, static_cast<uint64_t>(status.st_size)).read(expected_size);
}

}  // namespace snow
