#include <limits.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>

#include "image/layer.h"
#include "image/sparse_file.h"

namespace snow {
namespace {

int open_pidfd(pid_t pid) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); }

bool sorted_and_apart(const std::vector<Range>& ranges) {
  uint64_t end = 0;
  for (const Range& range : ranges) {
    if (range.length == 0 || range.offset < end) return false;
    end = range.offset + range.length;
  }
  return true;
}

}  // namespace

DeltaLayer::DeltaLayer(pid_t pid, uint64_t address, std::vector<Range> ranges, std::string path)
    : pid_(pid),
      pidfd_(open_pidfd(pid)),
      address_(address),
      ranges_(std::move(ranges)),
      path_(std::move(path)) {
  assert(sorted_and_apart(ranges_));
}

DeltaLayer::~DeltaLayer() {
  if (copied_ && owned_) ::unlink(path_.c_str());
}

uint64_t DeltaLayer::size_bytes() const {
  return ranges_.empty() ? 0 : ranges_.back().offset + ranges_.back().length;
}

bool DeltaLayer::covers(uint64_t offset, uint64_t length) const {
  auto at = std::partition_point(ranges_.begin(), ranges_.end(), [&](const Range& range) {
    return range.offset + range.length <= offset;
  });
  const uint64_t end = offset + length;
  for (; offset < end; ++at) {
    if (at == ranges_.end() || at->offset > offset) return false;
    offset = at->offset + at->length;
  }
  return true;
}

Result<void> DeltaLayer::read_process(std::span<iovec> remote, std::span<std::byte> into) const {
  while (!into.empty()) {
    iovec local{into.data(), into.size()};
    const ssize_t got = ::process_vm_readv(pid_, &local, 1, remote.data(), remote.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      if (got == 0) errno = EFAULT;
      return fail_errno(Code::host_failed, "memory of process {} at {:#x} cannot be read", pid_,
                        reinterpret_cast<uint64_t>(remote.front().iov_base));
    }
    // Still alive, so the number was its own while we read.
    pollfd ended{pidfd_.get(), POLLIN, 0};
    if (!pidfd_ || ::poll(&ended, 1, 0) != 0) {
      return fail(Code::host_failed, "process {} ended before its memory was copied", pid_);
    }
    into = into.subspan(static_cast<size_t>(got));
    size_t used = static_cast<size_t>(got);
    while (!remote.empty() && used >= remote.front().iov_len) {
      used -= remote.front().iov_len;
      remote = remote.subspan(1);
    }
    if (used > 0) {
      remote.front().iov_base = static_cast<std::byte*>(remote.front().iov_base) + used;
      remote.front().iov_len -= used;
    }
  }
  return {};
}

Result<void> DeltaLayer::read(uint64_t offset, std::span<std::byte> into) {
  assert(covers(offset, into.size()));
  if (!copied()) {
    const std::shared_lock lock(mutex_);
    if (!copied()) {
      iovec remote{reinterpret_cast<void*>(address_ + offset), into.size()};
      return read_process(std::span(&remote, 1), into);
    }
  }
  return read_all_at(file_.get(), offset, into, path_);
}

Result<void> DeltaLayer::copy_out(size_t bytes_per_step, const std::function<bool()>& between) {
  assert(bytes_per_step > 0);
  const std::lock_guard one_at_a_time(copy_mutex_);
  if (copied()) return {};
  SNOW_ASSIGN(SparseFile file, SparseFile::create(path_));
  std::vector<std::byte> buffer(bytes_per_step);
  std::vector<Range> pieces;
  std::vector<iovec> remote;
  auto range = ranges_.begin();
  uint64_t done_of_range = 0;
  for (bool first = true; range != ranges_.end(); first = false) {
    if (!first && !between()) {
      return fail(Code::wrong_state, "copy of process {}'s memory to {} was given up", pid_, path_);
    }
    pieces.clear();
    remote.clear();
    size_t bytes = 0;
    while (range != ranges_.end() && bytes < bytes_per_step && pieces.size() < IOV_MAX) {
      const uint64_t at = range->offset + done_of_range;
      const uint64_t length =
          std::min<uint64_t>(range->length - done_of_range, bytes_per_step - bytes);
      pieces.push_back({at, length});
      remote.push_back({reinterpret_cast<void*>(address_ + at), length});
      bytes += length;
      done_of_range += length;
      if (done_of_range == range->length) {
        ++range;
        done_of_range = 0;
      }
    }
    SNOW_TRY(read_process(remote, std::span(buffer).first(bytes)));
    std::span<const std::byte> left(buffer);
    for (const Range& piece : pieces) {
      SNOW_TRY(file.write(piece.offset, left.first(piece.length)));
      left = left.subspan(piece.length);
    }
  }
  SNOW_ASSIGN(file_, file.finish(size_bytes(), false));
  copied_.store(true, std::memory_order_release);
  const std::lock_guard old_readers_are_done(mutex_);
  return {};
}

}  // namespace snow
