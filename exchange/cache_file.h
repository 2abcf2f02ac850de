// What a host has of an image: a sparse file with the pages in their places, and beside it PATH.map
// with a header (docs/exchange-protocol.md) and two bitmaps, mapped into memory: which pages are
// there, and which of these are zeros, for which the file has a hole.
//
// Crash safety: a page's bit is set after its bytes were written, so the map never promises more
// than the file holds while the host's kernel lives. Neither is synced (a VM does not outlive its
// host's crash): after a reboot, told by the kernel's boot id, the map counts only if it was
// sealed.
//
// Thread model: every function from any thread. What drops pages excludes readers and writers for
// the moment; they do not exclude one another.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <span>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "exchange/bitmap.h"
#include "exchange/descriptor.h"

namespace snow::exchange {

class CacheFile {
 public:
  // Makes or reopens it. What is there but cannot be trusted is emptied; Code::exists: the files
  // there are another image's or not a cache; Code::corrupt: a map of a version we do not know;
  // Code::host_failed.
  static Result<std::unique_ptr<CacheFile>> open(const std::string& path, const ImageId& id,
                                                 uint64_t size_bytes);
  ~CacheFile();  // close()
  // Removes both files unless keep() was called. No other function may be called afterwards, except
  // those that say nothing of pages.
  void close();

  [[nodiscard]] uint32_t pages() const { return pages_; }
  [[nodiscard]] uint64_t size_bytes() const { return size_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  void keep() { owned_ = false; }
  [[nodiscard]] bool kept() const { return !owned_; }

  [[nodiscard]] bool has(uint32_t page) const { return present_.test(page); }
  [[nodiscard]] bool is_zero(uint32_t page) const { return zero_.test(page); }
  [[nodiscard]] const Bitmap& present() const { return present_; }
  [[nodiscard]] uint32_t present_pages() const { return count_.load(std::memory_order_acquire); }
  [[nodiscard]] bool complete() const { return present_pages() == pages_; }

  // Fills `into` if all pages of the range are there; false if one is not. A range that the disk
  // does not give back counts as not there from then on.
  [[nodiscard]] bool read(uint64_t offset, std::span<std::byte> into);

  // Whole pages from `first` on. Pages whose bit is set already are written all the same: it is the
  // same image. On failure (disk full: Code::no_room) no bit is set.
  Result<void> write(uint32_t first, std::span<const std::byte> whole_pages);
  // These are zeros. Nothing is written.
  void set_zero(uint32_t first, uint32_t count);

  // The bits on record go first, then the blocks. Zero pages stay. Returns how many were dropped.
  uint32_t drop(uint32_t first, uint32_t count);

  // Once it is complete: brings all to the disk, so that it counts after a reboot too.
  Result<void> seal();

 private:
  struct Header;
  CacheFile(std::string path, const ImageId& id, uint64_t size_bytes);
  Result<void> map_file();
  Result<void> open_data(bool fresh);
  [[nodiscard]] bool trusted() const;
  void write_header(bool sealed);
  void mark(uint32_t page);

  const std::string path_;
  const ImageId id_;
  const uint64_t size_;
  const uint32_t pages_;
  Fd fd_;
  std::byte* map_ = nullptr;
  size_t map_bytes_ = 0;
  Bitmap present_;
  Bitmap zero_;
  std::atomic<uint32_t> count_ = 0;
  std::atomic<bool> owned_ = false;  // set once it is open
  std::shared_mutex mutex_;          // unique: drop, seal
  bool sealed_ = false;              // under mutex_, unique
};

}  // namespace snow::exchange
