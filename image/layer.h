// A layer: bytes that never change, of which an image shows some ranges.
//
// Two kinds: a FileLayer lies in a file (a first boot's RAM file, a copied delta, a raw disk, a
// frozen qcow2 overlay). A DeltaLayer begins as the memory of a stopped QEMU, so that a freeze
// copies nothing, and becomes a file when the copy is done; the process may go away after that.
// Thread-safe.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
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
};

class FileLayer : public Layer {
 public:
  // Owned: the destructor removes the file unless keep() was called. Not owned: it stays.
  static Result<std::shared_ptr<FileLayer>> open(const std::string& path, bool owned);
  ~FileLayer() override;
  Result<void> read(uint64_t offset, std::span<std::byte> into) override;
  [[nodiscard]] std::string path() const override { return path_; }
  // The file outlives this object (the daemon stops; the next one opens it again).
  void keep() { owned_ = false; }
  // The ranges that hold data, by SEEK_DATA; the rest are holes.
  [[nodiscard]] Result<std::vector<Range>> data_ranges() const;

 private:
  FileLayer(std::string path, Fd fd, bool owned)
      : path_(std::move(path)), fd_(std::move(fd)), owned_(owned) {}
  const std::string path_;
  const Fd fd_;
  std::atomic<bool> owned_;
};

// The private pages of a stopped QEMU. Offsets are those of the memory image, in the process and in
// the file alike (the file is sparse).
class DeltaLayer : public Layer {
 public:
  // `address`: where the image's byte 0 is mapped in process `pid`. `ranges`: what is private there,
  // sorted. `path`: the file that copy_out() will make.
  DeltaLayer(pid_t pid, uint64_t address, std::vector<Range> ranges, std::string path);
  ~DeltaLayer() override;
  Result<void> read(uint64_t offset, std::span<std::byte> into) override;
  [[nodiscard]] std::string path() const override;

  // Copies all ranges into the file, about `bytes_per_step` at a time, calling `between` between
  // steps (it may sleep, to let readers go first; false gives up). After success reads come from
  // the file and the process is not needed any more. On failure (disk full, process gone) reads
  // still come from the process, the file is removed, and it may be tried again.
  Result<void> copy_out(size_t bytes_per_step, const std::function<bool()>& between);
  [[nodiscard]] bool copied() const { return copied_.load(); }
  [[nodiscard]] const std::vector<Range>& ranges() const { return ranges_; }
  void keep() { owned_ = false; }

 private:
  const pid_t pid_;
  const uint64_t address_;
  const std::vector<Range> ranges_;
  const std::string path_;
  std::shared_mutex mutex_;  // readers of the process against the switch to the file
  Fd file_;
  std::atomic<bool> copied_ = false;
  std::atomic<bool> owned_ = true;
};

}  // namespace snow
