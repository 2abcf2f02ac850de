// A layer: bytes that never change, of which an image shows some ranges.
//
// Two kinds: a FileLayer lies in a file (a first boot's RAM file, a copied delta, a raw disk, a
// frozen qcow2 overlay). A DeltaLayer begins as the memory of a stopped QEMU, so that a freeze
// copies nothing, and becomes a file when the copy is done; the process may go away after that.
// Thread-safe.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "image/extent_map.h"

namespace snow {

class Layer {
 public:
  virtual ~Layer() = default;
  virtual Result<void> read(uint64_t offset, std::span<std::byte> into) = 0;
  // Its file, for the record and for moving it; empty while it has none.
  [[nodiscard]] virtual std::string path() const = 0;
  // Nothing can be read at or after this offset.
  [[nodiscard]] virtual uint64_t size_bytes() const = 0;
  // Its file outlives this object (the daemon stops; the next one opens it again).
  virtual void keep() = 0;
};

class FileLayer : public Layer {
 public:
  // Owned: the destructor removes the file unless keep() was called. Not owned: it stays. A path
  // that is not there is Code::not_found, one that is no regular file Code::invalid.
  static Result<std::shared_ptr<FileLayer>> open(const std::string& path, bool owned);
  // A file that is open for reading already.
  static Result<std::shared_ptr<FileLayer>> adopt(Fd fd, const std::string& path, bool owned);
  ~FileLayer() override;

  // A range past the file's end is Code::corrupt.
  Result<void> read(uint64_t offset, std::span<std::byte> into) override;
  [[nodiscard]] std::string path() const override { return path_; }
  [[nodiscard]] uint64_t size_bytes() const override { return size_; }
  void keep() override { owned_ = false; }
  void own() { owned_ = true; }  // the opposite

  // The ranges that hold data, by SEEK_DATA; the rest are holes.
  [[nodiscard]] Result<std::vector<Range>> data_ranges() const;

 private:
  FileLayer(std::string path, Fd fd, uint64_t size, bool owned)
      : path_(std::move(path)), fd_(std::move(fd)), size_(size), owned_(owned) {}

  const std::string path_;
  const Fd fd_;
  const uint64_t size_;  // when it was opened
  std::atomic<bool> owned_;
};

// The private pages of a stopped QEMU: read from the process until they are copied into a file.
// Offsets are those of the memory image, in the process and in the file alike (the file is sparse).
//
// Thread model: readers of the process hold mutex_ shared. copy_out() first makes the file visible,
// so that new readers go there without a lock, then waits for the old ones: the process may go as
// soon as it returns, and no stream of readers can hold it up.
class DeltaLayer : public Layer {
 public:
  // `address`: where the image's byte 0 is mapped in process `pid`. `ranges`: what is private
  // there, sorted, without overlaps. `path`: the file that copy_out() will make. The process is
  // held by a pidfd: a later process of the same number is never read.
  DeltaLayer(pid_t pid, uint64_t address, std::vector<Range> ranges, std::string path);
  // Removes the file unless keep() was called.
  ~DeltaLayer() override;

  // The range must lie within ranges(), across those that touch at most: everything else is a bug
  // of the caller and asserted, since zeros would be a lie. A process that is gone is
  // Code::host_failed.
  Result<void> read(uint64_t offset, std::span<std::byte> into) override;
  [[nodiscard]] std::string path() const override { return copied_ ? path_ : std::string(); }
  [[nodiscard]] uint64_t size_bytes() const override;
  void keep() override { owned_ = false; }

  // Copies all ranges into the file, about `bytes_per_step` at a time, calling `between` between
  // steps (it may sleep, to let readers go first; false gives up: Code::wrong_state). After success
  // reads come from the file and the process is not needed any more. On failure (disk full, process
  // gone) reads still come from the process, no file is left, and it may be tried again. Success at
  // once if it is copied already; a second caller at the same time waits for the first.
  Result<void> copy_out(size_t bytes_per_step, const std::function<bool()>& between);
  [[nodiscard]] bool copied() const { return copied_.load(std::memory_order_acquire); }
  [[nodiscard]] const std::vector<Range>& ranges() const { return ranges_; }

 private:
  [[nodiscard]] bool covers(uint64_t offset, uint64_t length) const;
  // Fills `into` from the pieces `remote` (process addresses), which it uses up.
  Result<void> read_process(std::span<iovec> remote, std::span<std::byte> into) const;

  const pid_t pid_;
  const Fd pidfd_;  // invalid if the process was gone at the start
  const uint64_t address_;
  const std::vector<Range> ranges_;
  const std::string path_;
  std::mutex copy_mutex_;    // one copy_out at a time
  std::shared_mutex mutex_;  // readers of the process
  Fd file_;                  // set once, before copied_
  std::atomic<bool> copied_ = false;
  std::atomic<bool> owned_ = true;
};

}  // namespace snow
