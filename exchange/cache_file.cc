#include "exchange/cache_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/file.h"
#include "base/log.h"

namespace snow::exchange {
namespace {

constexpr char kMagic[8] = {'S', 'N', 'O', 'W', 'M', 'A', 'P', '\n'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 4096;

std::string boot_id() {
  auto text = read_file("/proc/sys/kernel/random/boot_id", 64);
  return text ? text->substr(0, 36) : std::string();
}

}  // namespace

struct CacheFile::Header {
  char magic[8];
  uint32_t version;
  uint32_t sealed;
  ImageId id;
  uint64_t size_bytes;
  char boot_id[40];
  uint64_t checksum;  // XXH3 of what is before it
};

CacheFile::CacheFile(std::string path, const ImageId& id, uint64_t size_bytes)
    : path_(std::move(path)), id_(id), size_(size_bytes), pages_(pages_of(size_bytes)) {}

CacheFile::~CacheFile() { close(); }

void CacheFile::close() {
  if (map_ == nullptr) return;
  ::munmap(map_, map_bytes_);
  map_ = nullptr;
  if (owned_) {
    ::unlink(path_.c_str());  // the data first: a map without data is emptied, data without a map
    ::unlink((path_ + ".map").c_str());  // is nobody's
  }
  fd_.reset();
}

Result<std::unique_ptr<CacheFile>> CacheFile::open(const std::string& path, const ImageId& id,
                                                   uint64_t size_bytes) {
  if (size_bytes == 0 || size_bytes > kMaxImageBytes) {
    return fail(Code::invalid, "cache {}: an image of {} bytes", path, size_bytes);
  }
  std::unique_ptr<CacheFile> cache(new CacheFile(path, id, size_bytes));
  const bool has_map = ::access((path + ".map").c_str(), F_OK) == 0;
  if (!has_map && ::access(path.c_str(), F_OK) == 0) {
    return fail(Code::exists, "cache {}: a file without a map lies there; move it away", path);
  }
  SNOW_TRY(cache->map_file());
  Header header{};
  std::memcpy(&header, cache->map_, sizeof header);
  const bool ours = std::memcmp(header.magic, kMagic, sizeof kMagic) == 0 &&
                    header.checksum == XXH3_64bits(&header, offsetof(Header, checksum));
  if (ours && header.version != kVersion) {
    return fail(Code::corrupt, "cache {}.map: version {}, but this program knows only {}", path,
                header.version, kVersion);
  }
  if (ours && (header.id != id || header.size_bytes != size_bytes)) {
    return fail(Code::exists, "cache {}: holds another image ({}); move it away", path,
                to_text(header.id));
  }
  const bool fresh = !ours || !cache->trusted();
  if (has_map && fresh) log_warn("cache {}: cannot be trusted after a crash; begun anew", path);
  if (auto opened = cache->open_data(fresh); !opened) {
    if (!has_map) ::unlink((path + ".map").c_str());
    return tl::unexpected(std::move(opened).error());
  }
  cache->owned_ = true;
  return cache;
}

// The whole map has its blocks from the start: a store into a mapping of a file on a full disk
// would be a SIGBUS.
Result<void> CacheFile::map_file() {
  const std::string name = path_ + ".map";
  Fd fd(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd) return fail_errno(Code::host_failed, "cache {}: cannot open", name);
  const size_t words = Bitmap::words_of(pages_);
  map_bytes_ = kHeaderBytes + 2 * words * sizeof(uint64_t);
  if (const int error = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(map_bytes_))) {
    errno = error;
    auto failed = fail_errno(Code::host_failed, "cache {}: cannot have {} bytes", name, map_bytes_);
    struct stat status {};
    if (::fstat(fd.get(), &status) == 0 && static_cast<size_t>(status.st_size) < map_bytes_) {
      ::unlink(name.c_str());  // just made
    }
    return failed;
  }
  void* at = ::mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (at == MAP_FAILED) return fail_errno(Code::host_failed, "cache {}: cannot map", name);
  map_ = static_cast<std::byte*>(at);
  auto* first = reinterpret_cast<uint64_t*>(map_ + kHeaderBytes);
  present_ = Bitmap(first, pages_);
  zero_ = Bitmap(first + words, pages_);
  return {};
}

bool CacheFile::trusted() const {
  Header header{};
  std::memcpy(&header, map_, sizeof header);
  if (header.sealed == 0 && boot_id() != std::string(header.boot_id)) return false;
  struct stat status {};
  if (::stat(path_.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return false;
  if (static_cast<uint64_t>(status.st_size) != offset_of(pages_)) return false;
  const uint64_t beyond = pages_ % 64 == 0 ? 0 : ~uint64_t{0} << (pages_ % 64);
  return (present_.load(Bitmap::words_of(pages_) - 1) & beyond) == 0;
}

Result<void> CacheFile::open_data(bool fresh) {
  const int flags = O_RDWR | O_CREAT | O_CLOEXEC | (fresh ? O_TRUNC : 0);
  if (fresh) {
    std::memset(map_, 0, map_bytes_);
  }
  fd_.reset(::open(path_.c_str(), flags, 0600));
  if (!fd_) return fail_errno(Code::host_failed, "cache {}: cannot open", path_);
  if (::ftruncate(fd_.get(), static_cast<off_t>(offset_of(pages_))) != 0) {
    auto failed = fail_errno(Code::host_failed, "cache {}: cannot set its size", path_);
    if (fresh) ::unlink(path_.c_str());
    return failed;
  }
  if (fresh) write_header(false);
  sealed_ = reinterpret_cast<const Header*>(map_)->sealed != 0;
  count_ = present_.count();
  return {};
}

void CacheFile::write_header(bool sealed) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.sealed = sealed ? 1 : 0;
  header.id = id_;
  header.size_bytes = size_;
  const std::string boot = boot_id();
  std::memcpy(header.boot_id, boot.data(), std::min(boot.size(), sizeof header.boot_id - 1));
  header.checksum = XXH3_64bits(&header, offsetof(Header, checksum));
  std::memcpy(map_, &header, sizeof header);
}

void CacheFile::mark(uint32_t page) {
  if (present_.set(page)) count_.fetch_add(1, std::memory_order_acq_rel);
}

bool CacheFile::read(uint64_t offset, std::span<std::byte> into) {
  if (into.empty()) return true;
  const auto first = static_cast<uint32_t>(offset / kPageBytes);
  const auto end = static_cast<uint32_t>((offset + into.size() - 1) / kPageBytes) + 1;
  {
    const std::shared_lock lock(mutex_);
    if (present_.next_clear(first, end) != end) return false;
    if (end - first == 1 && zero_.test(first)) {
      std::memset(into.data(), 0, into.size());
      return true;
    }
    const auto done = read_all_at(fd_.get(), offset, into, path_);
    if (done) return true;
    log_error("{}; its pages are fetched again", done.error().message);
  }
  drop(first, end - first);
  return false;
}

Result<void> CacheFile::write(uint32_t first, std::span<const std::byte> whole_pages) {
  const auto count = static_cast<uint32_t>(whole_pages.size() / kPageBytes);
  const std::shared_lock lock(mutex_);
  if (auto written = write_all_at(fd_.get(), offset_of(first), whole_pages, path_); !written) {
    return fail(Code::no_room, "cache {}", written.error().message);
  }
  for (uint32_t page = first; page < first + count; ++page) mark(page);
  return {};
}

void CacheFile::set_zero(uint32_t first, uint32_t count) {
  const std::shared_lock lock(mutex_);
  for (uint32_t page = first; page < first + count; ++page) {
    if (present_.test(page)) continue;  // its bytes may lie in the file, and be zeros there
    zero_.set(page);
    mark(page);
  }
}

uint32_t CacheFile::drop(uint32_t first, uint32_t count) {
  const std::unique_lock lock(mutex_);
  if (sealed_) {  // what the disk has of the map may be older than its holes from here on
    write_header(false);
    ::msync(map_, kHeaderBytes, MS_SYNC);
    sealed_ = false;
  }
  uint32_t dropped = 0;
  uint32_t at = first;
  const uint32_t end = first + count;
  while (at < end) {
    uint32_t run = at;  // pages that are there and not zeros
    while (run < end && present_.test(run) && !zero_.test(run)) present_.clear(run++);
    if (run > at) {
      dropped += run - at;
      ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(offset_of(at)), static_cast<off_t>(offset_of(run - at)));
    }
    at = run + 1;
  }
  count_.fetch_sub(dropped, std::memory_order_acq_rel);
  return dropped;
}

Result<void> CacheFile::seal() {
  const std::unique_lock lock(mutex_);
  if (!complete()) return fail(Code::wrong_state, "cache {}: pages are missing", path_);
  if (::fdatasync(fd_.get()) != 0) return fail_errno(Code::host_failed, "{}: sync failed", path_);
  if (::msync(map_, map_bytes_, MS_SYNC) != 0) {
    return fail_errno(Code::host_failed, "{}.map: sync failed", path_);
  }
  write_header(true);
  if (::msync(map_, kHeaderBytes, MS_SYNC) != 0) {
    return fail_errno(Code::host_failed, "{}.map: sync failed", path_);
  }
  sealed_ = true;
  return {};
}

}  // namespace snow::exchange
