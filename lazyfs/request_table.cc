#include "lazyfs/request_table.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "lazyfs/lazyfs.h"

namespace snow {
namespace {
constexpr uint64_t kMagic = 0x31626174776f6e73;  // "snowtab1"; a new layout gets a new number
}

struct RequestTable::Layout {
  uint64_t magic;
  uint64_t unbound_overflow;  // more files than the list holds: every file may be unbound
  uint64_t unbound_end;       // entries from here on were never used
  std::byte unused[4096 - 24];
  uint64_t unbound[kUnboundFiles];  // 0: free
  alignas(4096) std::byte slots[kSlots][kSlotBytes];
};

size_t lazyfs_table_bytes() { return RequestTable::kBytes; }

Result<RequestTable> RequestTable::map(int table_fd) {
  static_assert(sizeof(Layout) == kBytes);
  struct stat status {};
  if (fstat(table_fd, &status) < 0) {
    return fail_errno(Code::invalid, "table of unanswered requests (descriptor {})", table_fd);
  }
  if (static_cast<uint64_t>(status.st_size) < kBytes) {
    return fail(Code::invalid, "table of unanswered requests has {} bytes, needs {}",
                status.st_size, kBytes);
  }
  void* memory =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, table_fd, 0);
  if (memory == MAP_FAILED) {
    return fail_errno(Code::host_failed, "table of unanswered requests cannot be mapped");
  }
  // A kill during read(2) must find the slot's pages in place, or the request would be refused.
  if (mlock(memory, kBytes) < 0) {
    log_warn("table of unanswered requests cannot be locked in memory: {}", strerror(errno));
  }
  RequestTable table(static_cast<Layout*>(memory));
  if (table.layout_->magic != kMagic) {
    if (table.layout_->magic != 0) {
      log_warn("table of unanswered requests is of another version and starts empty");
    }
    table.reset();
  }
  return table;
}

RequestTable::RequestTable(RequestTable&& other) noexcept
    : layout_(std::exchange(other.layout_, nullptr)) {}

RequestTable::~RequestTable() {
  if (layout_ != nullptr) munmap(layout_, kBytes);
}

std::span<std::byte> RequestTable::slot(size_t index) const { return layout_->slots[index]; }

std::optional<fuse_in_header> RequestTable::noted(size_t index) const {
  fuse_in_header header;
  std::memcpy(&header, layout_->slots[index], sizeof header);
  if (header.len < sizeof header || header.len > kSlotBytes) return std::nullopt;
  return header;
}

void RequestTable::clear(size_t index) {
  auto* header = reinterpret_cast<fuse_in_header*>(layout_->slots[index]);
  std::atomic_ref<uint32_t>(header->len).store(0, std::memory_order_release);
}

void RequestTable::reset() {
  std::memset(static_cast<void*>(layout_), 0, sizeof *layout_);
  layout_->magic = kMagic;
}

void RequestTable::clear_requests() {
  for (size_t index = 0; index < kSlots; ++index) clear(index);
}

void RequestTable::note_unbound(uint64_t number) {
  uint64_t* const end = layout_->unbound + layout_->unbound_end;
  if (std::find(layout_->unbound, end, number) != end) return;
  uint64_t* const place = std::find(layout_->unbound, end, uint64_t{0});
  if (place == end) {
    if (layout_->unbound_end == kUnboundFiles) {
      layout_->unbound_overflow = 1;
      return;
    }
    ++layout_->unbound_end;
  }
  *place = number;
}

void RequestTable::forget_unbound(uint64_t number) {
  uint64_t* const end = layout_->unbound + layout_->unbound_end;
  uint64_t* const place = std::find(layout_->unbound, end, number);
  if (place != end) *place = 0;
}

bool RequestTable::maybe_unbound(uint64_t number) const {
  if (layout_->unbound_overflow != 0) return true;
  uint64_t* const end = layout_->unbound + layout_->unbound_end;
  return std::find(layout_->unbound, end, number) != end;
}

void RequestTable::set_unbound(const std::vector<uint64_t>& numbers) {
  // Killed half-way, the table must name too many files rather than too few.
  const std::atomic_ref overflow(layout_->unbound_overflow);
  overflow.store(1);
  const size_t kept = std::min(numbers.size(), kUnboundFiles);
  std::copy_n(numbers.begin(), kept, layout_->unbound);
  layout_->unbound_end = kept;
  overflow.store(numbers.size() > kUnboundFiles ? 1 : 0);
}

}  // namespace snow
