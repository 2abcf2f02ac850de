// The LazyFs object: puts mount, device, request table, files and server together. What needs
// thought here is the order of things in bind(), remove() and start(); it is said there.
#include "lazyfs/lazyfs.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "base/log.h"
#include "lazyfs/device.h"
#include "lazyfs/file_table.h"
#include "lazyfs/mount.h"
#include "lazyfs/notifier.h"
#include "lazyfs/request_table.h"
#include "lazyfs/server.h"

namespace snow {
namespace {

constexpr uint64_t kPage = 4096;
constexpr size_t kStoreBytes = size_t{1} << 20;  // of one FUSE_NOTIFY_STORE

// Bytes of the file in the page cache: cachestat(2) where the kernel has it (6.5), else mincore(2).
uint64_t resident_bytes(const std::string& path, uint64_t size) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd || size == 0) return 0;
  constexpr long kCachestat = 451;
  struct {
    uint64_t offset, length;
  } range = {0, size};
  struct {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } answer{};
  if (syscall(kCachestat, fd.get(), &range, &answer, 0) == 0) return answer.cached * kPage;
  uint64_t pages = 0;
  constexpr uint64_t kWindow = uint64_t{1} << 30;
  std::vector<unsigned char> resident(kWindow / kPage);
  for (uint64_t offset = 0; offset < size; offset += kWindow) {
    const uint64_t length = std::min(kWindow, size - offset);
    void* memory =
        mmap(nullptr, length, PROT_READ, MAP_SHARED, fd.get(), static_cast<off_t>(offset));
    if (memory == MAP_FAILED) return pages * kPage;
    if (mincore(memory, length, resident.data()) == 0) {
      for (uint64_t i = 0; i < (length + kPage - 1) / kPage; ++i) pages += resident[i] & 1;
    }
    munmap(memory, length);
  }
  return pages * kPage;
}

class LazyFsImpl final : public LazyFs {
 public:
  LazyFsImpl(const Options& options, Fd fd, RequestTable table)
      : options_(options),
        inherited_(options.fuse_fd >= 0),
        device_(std::move(fd)),
        table_(std::move(table)),
        server_(device_, notifier_, table_, files_) {}

  ~LazyFsImpl() override { server_.stop(); }

  Result<void> handshake() { return device_.handshake(); }

  [[nodiscard]] int fuse_fd() const override { return device_.fd(); }
  Result<void> start() override;
  void unmount() override { unmount_fuse(options_.mount_point); }
  Result<void> set_readahead(unsigned kib) override {
    return set_mount_readahead(options_.mount_point, kib);
  }
  Result<void> add(uint64_t number, uint64_t size) override;
  Result<void> bind(uint64_t number, std::shared_ptr<Content> content) override;
  void remove(uint64_t number) override;
  Result<void> store(uint64_t number, uint64_t offset, std::span<const std::byte> data) override;
  [[nodiscard]] std::string path(uint64_t number) const override {
    return options_.mount_point + "/" + file_name(number);
  }
  [[nodiscard]] Result<FileStatistics> statistics(uint64_t number) const override;

 private:
  Result<void> fetch_unanswered();
  Result<void> drop_zeros(uint64_t number);

  const Options options_;
  const bool inherited_;
  Device device_;
  RequestTable table_;
  FileTable files_;
  Notifier notifier_{device_};
  Server server_;
  mutable std::mutex mutex_;  // guards started_ and the unbound files of table_
  bool started_ = false;
};

Result<std::shared_ptr<LazyFile>> named(const FileTable& files, uint64_t number) {
  auto file = files.find_named(number);
  if (!file) return fail(Code::not_found, "lazy file {:x}: no such file", number);
  return file;
}

// What the daemon before this one received and did not answer: the kernel sends it again, or the
// slots in the table hold it.
Result<void> LazyFsImpl::fetch_unanswered() {
  if (!inherited_ || !options_.use_resend) return {};
  const int error = device_.resend();
  if (error == 0) {
    table_.clear_requests();
    return {};
  }
  errno = error;
  if (error == EINVAL) {
    log_info("lazyfs: the kernel cannot resend; unanswered requests come from the table");
    return {};
  }
  return fail_errno(Code::host_failed, "mount point '{}': the connection taken over is broken",
                    options_.mount_point);
}

Result<void> LazyFsImpl::start() {
  std::vector<std::shared_ptr<LazyFile>> stale;
  {
    const std::lock_guard lock(mutex_);
    if (started_) return fail(Code::wrong_state, "lazyfs is started already");
    SNOW_TRY(fetch_unanswered());
    // The table names unbound files before they answer the first zero. Files that were unbound
    // under the daemon before this one and are bound now may have zeros in the kernel's cache.
    // Others keep what is cached.
    for (const auto& file : files_.all()) {
      if (file->content() == nullptr) {
        table_.note_unbound(file->number);
      } else if (table_.maybe_unbound(file->number)) {
        stale.push_back(file);
      }
    }
    SNOW_TRY(server_.start(options_.threads));
    started_ = true;
  }
  // Dropping pages waits for reads under way, so only now that they are answered.
  for (const auto& file : stale) SNOW_TRY(drop_zeros(file->number));
  const std::lock_guard lock(mutex_);
  std::vector<uint64_t> unbound;
  for (const auto& file : files_.all()) {
    // A file that is being bound just now stays listed: bind() takes it out itself.
    const bool dropped = std::find(stale.begin(), stale.end(), file) != stale.end();
    if (file->content() == nullptr || (!dropped && table_.maybe_unbound(file->number))) {
      unbound.push_back(file->number);
    }
  }
  table_.set_unbound(unbound);
  return {};
}

Result<void> LazyFsImpl::add(uint64_t number, uint64_t size) {
  const std::lock_guard lock(mutex_);
  SNOW_TRY(files_.add(number, size, inherited_ && !started_));
  if (started_) table_.note_unbound(number);
  return {};
}

// The switch comes first, then the kernel's pages are dropped. A read that was answered with zeros
// had been received before the switch; its pages are locked in the cache until its answer, and the
// kernel waits for locked pages when it drops a file's. A page that enters the cache behind the
// kernel's pass is asked for after the switch. So no zero stays in the cache once bind() returns.
Result<void> LazyFsImpl::bind(uint64_t number, std::shared_ptr<Content> content) {
  SNOW_ASSIGN(const auto file, named(files_, number));
  if (content->size() != file->size) {
    return fail(Code::invalid, "lazy file {:x} has {} bytes, the content to bind has {}", number,
                file->size, content->size());
  }
  {
    const std::lock_guard lock(mutex_);
    if (!file->bind(std::move(content))) {
      return fail(Code::wrong_state, "lazy file {:x} is bound already", number);
    }
    if (!started_) return {};  // start() drops the zeros
  }
  return drop_zeros(number);
}

Result<void> LazyFsImpl::drop_zeros(uint64_t number) {
  const int error =
      notifier_.run([number](Device& device) { return device.invalidate_pages(number); });
  if (error != 0 && error != ENOENT) {
    errno = error;
    return fail_errno(Code::host_failed, "lazy file {:x}: the kernel does not drop its pages",
                      number);
  }
  const std::lock_guard lock(mutex_);
  table_.forget_unbound(number);
  return {};
}

// No name is given out any more before the kernel drops the one it has; it waits for lookups under
// way while it does.
void LazyFsImpl::remove(uint64_t number) {
  const auto file = files_.take_name(number);
  if (!file) return;
  notifier_.run(
      [name = file_name(number)](Device& device) { return device.invalidate_name(name); });
  {
    const std::lock_guard lock(mutex_);
    if (file->content() == nullptr) table_.forget_unbound(number);
  }
  server_.forget(number, 0);
}

Result<void> LazyFsImpl::store(uint64_t number, uint64_t offset, std::span<const std::byte> data) {
  SNOW_ASSIGN(const auto file, named(files_, number));
  const uint64_t padded_size = (file->size + kPage - 1) / kPage * kPage;
  if (offset % kPage != 0 || data.size() % kPage != 0 || offset > padded_size ||
      data.size() > padded_size - offset) {
    return fail(Code::invalid, "lazy file {:x}: {} bytes at {} are no whole pages of the file",
                number, data.size(), offset);
  }
  {
    const std::lock_guard lock(mutex_);
    if (!started_ || file->content() == nullptr) {
      return fail(Code::wrong_state, "lazy file {:x}: pages can be stored only while it is {}",
                  number, started_ ? "bound" : "served");
    }
  }
  // A longer store would make the file longer.
  data = data.first(std::min<uint64_t>(data.size(), file->size - std::min(file->size, offset)));
  while (!data.empty()) {
    const auto part = data.first(std::min(data.size(), kStoreBytes));
    const auto store_part = [&](Device& device) { return device.store(number, offset, part); };
    int error = notifier_.run(store_part);
    struct stat status {};
    if (error == ENOENT && stat(path(number).c_str(), &status) == 0) {
      error = notifier_.run(store_part);  // the kernel had not looked the file up yet
    }
    if (error != 0) {
      errno = error;
      return fail_errno(Code::host_failed, "lazy file {:x}: {} bytes at {} cannot be stored",
                        number, part.size(), offset);
    }
    file->stored_bytes += part.size();
    offset += part.size();
    data = data.subspan(part.size());
  }
  return {};
}

Result<FileStatistics> LazyFsImpl::statistics(uint64_t number) const {
  SNOW_ASSIGN(const auto file, named(files_, number));
  FileStatistics result = file->statistics();
  {
    const std::lock_guard lock(mutex_);
    if (!started_) return result;  // nobody would answer
  }
  result.resident_bytes = resident_bytes(path(number), file->size);
  return result;
}

}  // namespace

Result<std::unique_ptr<LazyFs>> LazyFs::open(const Options& options) {
  SNOW_ASSIGN(RequestTable table, RequestTable::map(options.table_fd));
  if (options.fuse_fd >= 0) {
    SNOW_ASSIGN(Fd fd, take_over_fuse(options.fuse_fd, options.mount_point));
    return std::make_unique<LazyFsImpl>(options, std::move(fd), std::move(table));
  }
  SNOW_ASSIGN(Fd fd, mount_fuse(options.mount_point));
  table.reset();
  auto result = std::make_unique<LazyFsImpl>(options, std::move(fd), std::move(table));
  if (auto ready = result->handshake(); !ready) {
    result->unmount();
    return tl::unexpected(std::move(ready).error());
  }
  return result;
}

}  // namespace snow
