// What must survive a daemon that is killed with -9, in a memfd that the keeper holds: the requests
// it had received and not answered, and the files that still read as zeros.
//
// Each serving thread owns one slot and lets read(2) put the request from /dev/fuse straight into
// it, so there is no moment at which a request has left the kernel and is not in the memfd. A slot
// whose header has a length that is not 0 holds an unanswered request (or one whose answer went out
// just before the kill: answering it again is harmless, the kernel no longer knows it).
//
// Thread model: a slot belongs to one thread; the list of unbound files is guarded by the caller.
#pragma once

#include <linux/fuse.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"

namespace snow {

class RequestTable {
 public:
  static constexpr size_t kSlots = 512;          // also the limit of serving threads
  static constexpr size_t kSlotBytes = 8192;     // FUSE_MIN_READ_BUFFER, the least the kernel takes
  static constexpr size_t kUnboundFiles = 4096;  // more: the list gives up and says "all of them"

  // Maps table_fd; a table of another layout (or a new one, all zeros) is made empty. Code::invalid
  // if table_fd is not a file of lazyfs_table_bytes().
  static Result<RequestTable> map(int table_fd);
  RequestTable(RequestTable&& other) noexcept;
  RequestTable& operator=(RequestTable&&) = delete;
  ~RequestTable();

  [[nodiscard]] std::span<std::byte> slot(size_t index) const;
  // The unanswered request in the slot; nothing if there is none or it makes no sense.
  [[nodiscard]] std::optional<fuse_in_header> noted(size_t index) const;
  void clear(size_t index);
  // No requests, no unbound files: for a new mount.
  void reset();
  void clear_requests();

  // Files that may have zeros in the kernel's cache which are not their content.
  void note_unbound(uint64_t number);
  void forget_unbound(uint64_t number);
  [[nodiscard]] bool maybe_unbound(uint64_t number) const;
  // Leaves exactly these.
  void set_unbound(const std::vector<uint64_t>& numbers);

  static constexpr size_t kBytes = 4096 + kUnboundFiles * 8 + kSlots * kSlotBytes;

 private:
  struct Layout;
  explicit RequestTable(Layout* layout) : layout_(layout) {}

  Layout* layout_;
};

}  // namespace snow
