#include "lazyfs/device.h"

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace snow {
namespace {

constexpr int kNotifyResend = 7;  // FUSE_NOTIFY_RESEND, in <linux/fuse.h> since Linux 6.9

// Readahead counts as background, and the kernel queues no more than this of it in all: a slow
// source with 12 (the default) pieces under way would stop everybody else's.
constexpr uint16_t kMaxBackground = 65535;

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

int write_parts(int fd, iovec* parts, int count) {
  for (;;) {
    if (writev(fd, parts, count) >= 0) return 0;
    if (errno != EINTR) return errno;
  }
}

}  // namespace

Result<void> Device::handshake() {
  alignas(8) std::array<std::byte, FUSE_MIN_READ_BUFFER> buffer;
  ssize_t count = 0;
  do {
    count = ::read(fd_.get(), buffer.data(), buffer.size());
  } while (count < 0 && errno == EINTR);
  if (count < 0) return fail_errno(Code::host_failed, "FUSE: the kernel sent no INIT");
  fuse_in_header header{};
  fuse_init_in in{};
  if (static_cast<size_t>(count) < sizeof header + 16) {
    return fail(Code::host_failed, "FUSE: INIT of {} bytes is too short", count);
  }
  std::memcpy(&header, buffer.data(), sizeof header);
  std::memcpy(&in, buffer.data() + sizeof header,
              std::min(sizeof in, static_cast<size_t>(count) - sizeof header));
  if (header.opcode != FUSE_INIT || in.major != FUSE_KERNEL_VERSION || in.minor < 28) {
    return fail(Code::host_failed,
                "FUSE: the kernel speaks {}.{} (opcode {}); 7.28 (Linux 4.20) or newer is needed",
                in.major, in.minor, header.opcode);
  }
  fuse_init_out out{};
  out.major = FUSE_KERNEL_VERSION;
  out.minor = FUSE_KERNEL_MINOR_VERSION;
  out.max_readahead = in.max_readahead;
  out.flags =
      in.flags & (FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_NO_OPEN_SUPPORT);
  out.max_background = kMaxBackground;
  out.congestion_threshold = kMaxBackground;
  out.max_write = 4096;  // writes are refused
  out.time_gran = 1;
  out.max_pages = kMaxReadBytes / 4096;
  if (const int error = answer(header.unique, &out, sizeof out)) {
    errno = error;
    return fail_errno(Code::host_failed, "FUSE: the kernel refuses the answer to INIT");
  }
  return {};
}

int Device::answer(uint64_t unique, const void* data, size_t size) {
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof header + size);
  header.unique = unique;
  std::array<iovec, 2> parts = {{{&header, sizeof header}, {const_cast<void*>(data), size}}};
  return write_parts(fd_.get(), parts.data(), size == 0 ? 1 : 2);
}

int Device::answer_error(uint64_t unique, int error) {
  fuse_out_header header{};
  header.len = sizeof header;
  header.error = -error;
  header.unique = unique;
  iovec part = {&header, sizeof header};
  return write_parts(fd_.get(), &part, 1);
}

int Device::notify(int code, std::span<const std::byte> head, std::span<const std::byte> data) {
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof header + head.size() + data.size());
  header.error = code;  // a notification has unique 0 and its code here
  std::array<iovec, 3> parts = {{{&header, sizeof header},
                                 {const_cast<std::byte*>(head.data()), head.size()},
                                 {const_cast<std::byte*>(data.data()), data.size()}}};
  return write_parts(fd_.get(), parts.data(), head.empty() ? 1 : data.empty() ? 2 : 3);
}

int Device::invalidate_pages(uint64_t number) {
  fuse_notify_inval_inode_out out{};
  out.ino = number;
  return notify(FUSE_NOTIFY_INVAL_INODE, bytes_of(out), {});
}

bool Device::is_known(uint64_t number) {
  fuse_notify_inval_inode_out out{};
  out.ino = number;
  out.off = -1;  // attributes only
  return notify(FUSE_NOTIFY_INVAL_INODE, bytes_of(out), {}) != ENOENT;
}

int Device::invalidate_name(std::string_view name) {
  std::array<std::byte, 32> text{};  // the protocol wants the final 0
  if (name.size() >= text.size()) return ENAMETOOLONG;
  std::memcpy(text.data(), name.data(), name.size());
  fuse_notify_inval_entry_out out{};
  out.parent = FUSE_ROOT_ID;
  out.namelen = static_cast<uint32_t>(name.size());
  return notify(FUSE_NOTIFY_INVAL_ENTRY, bytes_of(out), std::span(text).first(name.size() + 1));
}

int Device::store(uint64_t number, uint64_t offset, std::span<const std::byte> data) {
  fuse_notify_store_out out{};
  out.nodeid = number;
  out.offset = offset;
  out.size = static_cast<uint32_t>(data.size());
  return notify(FUSE_NOTIFY_STORE, bytes_of(out), data);
}

int Device::resend() { return notify(kNotifyResend, {}, {}); }

}  // namespace snow
