// lazyfs: images as files (FUSE). QEMU maps or reads a plain file of full size; a page that the
// kernel has not cached becomes a read that is answered from the file's Content. The kernel's page
// cache is the one copy that all VMs of the host share.
//
// A file is made unbound (it reads as zeros, for QEMUs that wait for the freeze) and bound to its
// content once; binding drops what the kernel cached before. Files are named by their number in
// hexadecimal, which is also their inode number, so the daemon after this one can take over the
// mount: it adds the same files again before start().
//
// Thread-safe. Reads are answered by several threads, so a slow source holds up only its readers
// (until 512 reads wait at once).
//
// Files can be opened O_RDWR, as QEMU does for memory that it maps private; writes are EROFS. Every
// user who reaches the mount point may open them: the folder above it must keep others out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "image/content.h"

namespace snow {

struct FileStatistics {
  uint64_t reads = 0;           // FUSE reads answered
  uint64_t bytes = 0;           // bytes in those answers
  uint64_t zero_bytes = 0;      // of those, bytes answered while unbound
  uint64_t stored_bytes = 0;    // put into the page cache unasked
  uint64_t resident_bytes = 0;  // in the kernel's page cache now (cachestat, mincore)
  uint64_t waiting = 0;         // reads not answered yet
  uint64_t latency_p50_ns = 0;  // of the last 1024 reads
  uint64_t latency_p99_ns = 0;
};

class LazyFs {
 public:
  struct Options {
    std::string mount_point;  // a folder; made if missing
    int fuse_fd = -1;         // /dev/fuse of an earlier daemon's mount (not owned: the keeper's);
                              // -1: a new mount is made
    int table_fd = -1;        // memfd with the table of unanswered requests; required
    bool use_resend = true;   // FUSE_NOTIFY_RESEND where the kernel has it; else the table
    size_t threads = 4;       // at first; more are started when all are busy, up to 512
  };
  // Mounts (or takes over fuse_fd) but answers nothing before start(). A mount that is there
  // already and is not ours is Code::exists; one whose server is gone is replaced. fuse_fd of a
  // mount that has ended is Code::host_failed. Needs root.
  static Result<std::unique_ptr<LazyFs>> open(const Options& options);

  // Stops the threads. The mount stays as long as somebody (the keeper) holds /dev/fuse; unmount()
  // ends it. Does not wait for reads that are inside Content::read: they are left to the daemon
  // after this one, and their Content lives until they return. No other call may be under way.
  virtual ~LazyFs() = default;

  // The descriptor of /dev/fuse, for the keeper to hold. Owned by this object.
  [[nodiscard]] virtual int fuse_fd() const = 0;

  // Once. Add the files of the daemon before this one, and bind those that were bound, before it:
  // what the kernel cached of them stays valid. Also those that were removed but are still in use
  // (remove them again afterwards). Reads of files that are not there get EIO.
  virtual Result<void> start() = 0;
  // Lazily: who has a file open or mapped is served as long as this object (or /dev/fuse) is there.
  virtual void unmount() = 0;

  // `number` > 1, below 2^63, never used before on this mount; `size` in bytes.
  virtual Result<void> add(uint64_t number, uint64_t size) = 0;
  // Once per file. From then on reads are answered from `content` (same size as the file). Returns
  // when the kernel has dropped the zeros, for which it waits for the reads under way; must not be
  // called from within Content::read (nor store() and remove()).
  virtual Result<void> bind(uint64_t number, std::shared_ptr<Content> content) = 0;
  // How far the kernel reads ahead, in KiB (128 at first); for files opened from now on. What is
  // cheap for images of this host costs a page of another host's a whole run of pages.
  virtual Result<void> set_readahead(unsigned kib) = 0;
  // The name goes away; whoever has it open or mapped goes on reading until it lets go.
  virtual void remove(uint64_t number) = 0;
  // Puts bytes into the kernel's page cache unasked; `offset` and size are multiples of 4096. Waits
  // for reads of these pages that are under way: answer those first. Wrong_state before start() or
  // bind().
  virtual Result<void> store(uint64_t number, uint64_t offset, std::span<const std::byte> data) = 0;

  [[nodiscard]] virtual std::string path(uint64_t number) const = 0;  // mount_point/hex
  [[nodiscard]] virtual Result<FileStatistics> statistics(uint64_t number) const = 0;
};

// Bytes of the table that Options::table_fd must have (ftruncate'd by whoever made the memfd).
size_t lazyfs_table_bytes();

}  // namespace snow
