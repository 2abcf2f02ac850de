// What the tests of lazyfs share: contents that tell where they are wrong, a folder with a table
// that leaves nothing behind.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/file.h"
#include "lazyfs/lazyfs.h"

namespace snow::test {

constexpr uint64_t kPage = 4096;

// Each 8 bytes hold their offset plus `salt`.
inline uint64_t pattern(uint64_t offset, uint64_t salt = 0) { return offset / 8 * 8 + salt; }

inline void fill_pattern(uint64_t offset, std::span<std::byte> into, uint64_t salt = 0) {
  for (size_t i = 0; i < into.size(); ++i) {
    const uint64_t word = pattern(offset + i, salt);
    into[i] = reinterpret_cast<const std::byte*>(&word)[(offset + i) % 8];
  }
}

class PatternContent : public Content {
 public:
  explicit PatternContent(uint64_t size, uint64_t salt = 1) : size_(size), salt_(salt) {}
  [[nodiscard]] uint64_t size() const override { return size_; }
  Result<void> read(uint64_t offset, std::span<std::byte> into) override {
    ++reads;
    fill_pattern(offset, into, salt_);
    return {};
  }

  std::atomic<int> reads = 0;

 private:
  const uint64_t size_;
  const uint64_t salt_;
};

// Reads wait until open() and tell how many of them do.
class GatedContent final : public PatternContent {
 public:
  using PatternContent::PatternContent;
  ~GatedContent() override { open(); }
  Result<void> read(uint64_t offset, std::span<std::byte> into) override {
    std::unique_lock lock(mutex_);
    ++inside_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    return PatternContent::read(offset, into);
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void wait_inside(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return inside_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int inside_ = 0;
};

class FailingContent final : public Content {
 public:
  explicit FailingContent(uint64_t size) : size_(size) {}
  [[nodiscard]] uint64_t size() const override { return size_; }
  Result<void> read(uint64_t, std::span<std::byte>) override {
    return fail(Code::corrupt, "lost for good");
  }

 private:
  const uint64_t size_;
};

class LazyFsFixture : public testing::Test {
 protected:
  void SetUp() override {
    if (!Fd(::open("/dev/fuse", O_RDWR | O_CLOEXEC))) {
      GTEST_SKIP() << "/dev/fuse cannot be opened (" << strerror(errno)
                   << "): lazyfs is not tested here";
    }
    char name[] = "/tmp/snow-lazyfs-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    options_.mount_point = folder_ + "/images";
    table_ = Fd(memfd_create("table", MFD_CLOEXEC));
    ASSERT_EQ(ftruncate(table_.get(), static_cast<off_t>(lazyfs_table_bytes())), 0);
    options_.table_fd = table_.get();
  }

  void TearDown() override {
    fs_.reset();
    if (folder_.empty()) return;
    while (umount2(options_.mount_point.c_str(), MNT_DETACH) == 0) {
    }
    remove_all(folder_);
  }

  void open_fs() {
    auto fs = LazyFs::open(options_);
    ASSERT_TRUE(fs) << fs.error().message;
    fs_ = std::move(*fs);
  }

  void start_fs() {
    open_fs();
    if (HasFatalFailure()) return;
    const auto started = fs_->start();
    ASSERT_TRUE(started) << started.error().message;
  }

  // A bound file of `size` bytes, its content.
  std::shared_ptr<PatternContent> add_pattern(uint64_t number, uint64_t size, uint64_t salt = 1) {
    auto content = std::make_shared<PatternContent>(size, salt);
    EXPECT_TRUE(fs_->add(number, size));
    EXPECT_TRUE(fs_->bind(number, content));
    return content;
  }

  Fd open_file(uint64_t number, int flags = O_RDWR) const {
    Fd fd(::open(fs_->path(number).c_str(), flags | O_CLOEXEC));
    EXPECT_TRUE(fd) << strerror(errno);
    return fd;
  }

  std::string folder_;
  Fd table_;
  LazyFs::Options options_;
  std::unique_ptr<LazyFs> fs_;
};

// A mapping of a whole file, readable and writable.
class Mapping {
 public:
  Mapping(int fd, uint64_t size, int flags = MAP_PRIVATE, int protection = PROT_READ | PROT_WRITE)
      : size_(size), memory_(mmap(nullptr, size, protection, flags, fd, 0)) {
    EXPECT_NE(memory_, MAP_FAILED) << strerror(errno);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { munmap(memory_, size_); }

  [[nodiscard]] std::byte* data() const { return static_cast<std::byte*>(memory_); }
  [[nodiscard]] uint64_t word(uint64_t offset) const {
    uint64_t value = 0;
    std::memcpy(&value, data() + offset, sizeof value);
    return value;
  }

 private:
  const uint64_t size_;
  void* const memory_;
};

// Reads one word by pread(2); all ones if that fails.
inline uint64_t read_word(int fd, uint64_t offset) {
  uint64_t value = 0;
  return pread(fd, &value, sizeof value, static_cast<off_t>(offset)) == sizeof value ? value
                                                                                     : UINT64_MAX;
}

}  // namespace snow::test
