// A sparse file in the making: it lies beside its place under a name of its own and is renamed when
// it is complete, so that a file at `path` is always a whole one. Used by one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace snow {

inline constexpr size_t kPageBytes = 4096;

class SparseFile {
 public:
  // Creates `path`.part, in place of one that a killed daemon left. Readable by the owner only:
  // what goes in is a guest's memory or disk.
  static Result<SparseFile> create(const std::string& path);
  SparseFile(SparseFile&&) = default;
  SparseFile& operator=(SparseFile&&) = delete;
  // Removes the file if it was not finished.
  ~SparseFile();

  // Pages of the file that would be all zero stay holes; so each range may be written only once.
  Result<void> write(uint64_t offset, std::span<const std::byte> data);

  // Sets the size and moves the file to its place, over one that is there. Returns it, open for
  // reading. `sync`: it is on the disk before it has its name.
  Result<Fd> finish(uint64_t size_bytes, bool sync);

 private:
  SparseFile(std::string path, Fd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  [[nodiscard]] std::string part() const { return path_ + ".part"; }

  std::string path_;
  Fd fd_;
};

}  // namespace snow
