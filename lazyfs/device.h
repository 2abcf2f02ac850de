// The kernel's FUSE protocol on an open /dev/fuse: answers and notifications, one system call each.
// The raw protocol is used rather than libfuse because a daemon must be able to go on with the
// descriptor of a killed one, whose INIT was answered long ago.
//
// Thread-safe. Functions return 0 or an errno value; none allocates.
#pragma once

#include <linux/fuse.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/fd.h"
#include "base/result.h"

namespace snow {

// The kernel's limit of one read (FUSE_MAX_PAGES).
inline constexpr size_t kMaxReadBytes = size_t{1} << 20;

class Device {
 public:
  explicit Device(Fd fd) : fd_(std::move(fd)) {}

  [[nodiscard]] int fd() const { return fd_.get(); }
  // Gives the descriptor up without closing it.
  [[nodiscard]] int release() { return fd_.release(); }

  // Reads the INIT of a new mount and answers it.
  Result<void> handshake();

  // ENOENT: the kernel does not wait for this answer (any more), which is fine.
  int answer(uint64_t unique, const void* data, size_t size);
  int answer_error(uint64_t unique, int error);

  // Drops the file's cached pages and attributes. Waits for the reads of these pages that are under
  // way, so it must not be called by a thread that is needed to answer them. ENOENT: the kernel
  // does not know the file.
  int invalidate_pages(uint64_t number);
  // Whether the kernel knows the file (costs it the cached attributes). Does not wait for reads.
  bool is_known(uint64_t number);
  // Drops a name of the root folder. Waits for lookups that are under way.
  int invalidate_name(std::string_view name);
  // Puts data into the page cache; waits for reads of these pages that are under way.
  int store(uint64_t number, uint64_t offset, std::span<const std::byte> data);
  // The kernel queues all requests again that were received and not answered. EINVAL: it is older
  // than Linux 6.9.
  int resend();

 private:
  int notify(int code, std::span<const std::byte> head, std::span<const std::byte> data);

  Fd fd_;
};

}  // namespace snow
