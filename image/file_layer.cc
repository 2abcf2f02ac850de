#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/layer.h"

namespace snow {

Result<std::shared_ptr<FileLayer>> FileLayer::open(const std::string& path, bool owned) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a fifo must not block us
  if (!fd) {
    const Code code = errno == ENOENT ? Code::not_found : Code::host_failed;
    return fail_errno(code, "layer {}: cannot open", path);
  }
  return adopt(std::move(fd), path, owned);
}

Result<std::shared_ptr<FileLayer>> FileLayer::adopt(Fd fd, const std::string& path, bool owned) {
  struct stat status {};
  if (::fstat(fd.get(), &status) < 0) {
    return fail_errno(Code::host_failed, "layer {}: fstat failed", path);
  }
  if (!S_ISREG(status.st_mode)) {
    return fail(Code::invalid, "layer {}: not a regular file", path);
  }
  return std::shared_ptr<FileLayer>(
      new FileLayer(path, std::move(fd), static_cast<uint64_t>(status.st_size), owned));
}

FileLayer::~FileLayer() {
  if (owned_) ::unlink(path_.c_str());
}

Result<void> FileLayer::read(uint64_t offset, std::span<std::byte> into) {
  return read_all_at(fd_.get(), offset, into, path_);
}

Result<std::vector<Range>> FileLayer::data_ranges() const {
  std::vector<Range> ranges;
  off_t at = 0;
  while (static_cast<uint64_t>(at) < size_) {
    const off_t data = ::lseek(fd_.get(), at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // only a hole is left
    const off_t hole = data < 0 ? data : ::lseek(fd_.get(), data, SEEK_HOLE);
    if (hole < 0) return fail_errno(Code::host_failed, "layer {}: SEEK_DATA failed", path_);
    ranges.push_back({static_cast<uint64_t>(data), static_cast<uint64_t>(hole - data)});
    at = hole;
  }
  return ranges;
}

}  // namespace snow
