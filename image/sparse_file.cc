#include "image/sparse_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

namespace snow {
namespace {

bool all_zero(std::span<const std::byte> page) {
  static constexpr std::array<std::byte, kPageBytes> kZeros{};
  return std::memcmp(page.data(), kZeros.data(), page.size()) == 0;
}

// Bytes up to the next page boundary of the file, at most `left`.
size_t to_page_end(uint64_t offset, size_t left) {
  return std::min(left, kPageBytes - static_cast<size_t>(offset % kPageBytes));
}

}  // namespace

Result<SparseFile> SparseFile::create(const std::string& path) {
  SparseFile file(path, Fd());
  file.fd_.reset(::open(file.part().c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file.fd_) return fail_errno(Code::host_failed, "{}: cannot create", file.part());
  return file;
}

SparseFile::~SparseFile() {
  if (fd_) ::unlink(part().c_str());
}

Result<void> SparseFile::write(uint64_t offset, std::span<const std::byte> data) {
  while (!data.empty()) {
    const size_t first = to_page_end(offset, data.size());
    const bool zero = all_zero(data.first(first));
    size_t run = first;  // pages of one kind
    while (run < data.size()) {
      const size_t next = to_page_end(offset + run, data.size() - run);
      if (all_zero(data.subspan(run, next)) != zero) break;
      run += next;
    }
    if (!zero) {
      if (auto written = write_all_at(fd_.get(), offset, data.first(run), part()); !written) {
        return fail(written.error().code, "{}; make room on its file system and try again",
                    written.error().message);
      }
    }
    offset += run;
    data = data.subspan(run);
  }
  return {};
}

Result<Fd> SparseFile::finish(uint64_t size_bytes, bool sync) {
  if (::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)) < 0) {
    return fail_errno(Code::host_failed, "{}: cannot set its size to {} bytes", part(), size_bytes);
  }
  if (sync && ::fdatasync(fd_.get()) < 0) {
    return fail_errno(Code::host_failed, "{}: sync failed", part());
  }
  if (::rename(part().c_str(), path_.c_str()) < 0) {
    return fail_errno(Code::host_failed, "{}: cannot rename to it", path_);
  }
  return std::move(fd_);
}

}  // namespace snow
