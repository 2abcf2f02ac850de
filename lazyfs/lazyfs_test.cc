#include "lazyfs/lazyfs.h"

#include <linux/falloc.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <random>
#include <thread>

#include "lazyfs/test_support.h"

namespace snow::test {
namespace {

using LazyFsTest = LazyFsFixture;

std::vector<std::byte> read_whole(int fd, uint64_t size) {
  std::vector<std::byte> data(size + 100);
  uint64_t done = 0;
  for (;;) {
    const ssize_t count =
        pread(fd, data.data() + done, data.size() - done, static_cast<off_t>(done));
    EXPECT_GE(count, 0) << strerror(errno);
    if (count <= 0) break;
    done += static_cast<uint64_t>(count);
  }
  data.resize(done);
  return data;
}

TEST_F(LazyFsTest, WholeFileReadsAsItsContent) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  for (const uint64_t size :
       {uint64_t{0}, uint64_t{1}, uint64_t{4095}, uint64_t{4096}, uint64_t{5 << 20} + 1234}) {
    const uint64_t number = 0xabc0 + size;
    add_pattern(number, size);
    const Fd fd = open_file(number);
    std::vector<std::byte> expected(size);
    fill_pattern(0, expected, 1);
    EXPECT_EQ(read_whole(fd.get(), size), expected) << size;
    struct stat status {};
    ASSERT_EQ(fstat(fd.get(), &status), 0);
    EXPECT_EQ(static_cast<uint64_t>(status.st_size), size);
    EXPECT_EQ(status.st_ino, number);
  }
}

TEST_F(LazyFsTest, FolderListsTheFiles) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  std::vector<std::string> expected;
  for (uint64_t number = 2; number < 1500; ++number) {
    ASSERT_TRUE(fs_->add(number, kPage));
    expected.push_back(fmt::format("{:x}", number));
  }
  std::sort(expected.begin(), expected.end());
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(options_.mount_point)) {
    found.push_back(entry.path().filename());
  }
  std::sort(found.begin(), found.end());
  EXPECT_EQ(found, expected);
  for (const char* name : {"0", "1", "002", "A", "5dc", "x", "2 "}) {
    struct stat status {};
    EXPECT_LT(stat((options_.mount_point + "/" + name).c_str(), &status), 0) << name;
  }
}

TEST_F(LazyFsTest, PrivateMappingIsWritableAndLeavesTheFileAlone) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  constexpr uint64_t kSize = 4 << 20;
  add_pattern(7, kSize);
  const Fd fd = open_file(7);
  const Mapping mine(fd.get(), kSize);
  const Mapping other(fd.get(), kSize);
  for (uint64_t offset = 0; offset < kSize; offset += 3 * kPage) {
    std::memset(mine.data() + offset, 0xee, 8);
  }
  for (uint64_t offset = 0; offset < kSize; offset += 8) {
    ASSERT_EQ(other.word(offset), pattern(offset, 1));
    const bool written = offset % (3 * kPage) == 0;
    ASSERT_EQ(mine.word(offset), written ? 0xeeeeeeeeeeeeeeee : pattern(offset, 1));
  }
}

TEST_F(LazyFsTest, RandomFaultsOfManyThreads) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  constexpr uint64_t kSize = 32 << 20;
  add_pattern(7, kSize);
  const Fd fd = open_file(7);
  const Mapping mapping(fd.get(), kSize);
  madvise(mapping.data(), kSize, MADV_RANDOM);
  std::atomic<int> wrong = 0;
  std::vector<std::jthread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937 random(seed);
      for (int i = 0; i < 3000; ++i) {
        const uint64_t offset = random() % (kSize / 8) * 8;
        if (mapping.word(offset) != pattern(offset, 1)) ++wrong;
      }
    });
  }
  threads.clear();
  EXPECT_EQ(wrong, 0);
}

TEST_F(LazyFsTest, WritesAreRefusedButHolesMayBePunched) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  add_pattern(7, 16 * kPage);
  const Fd fd = open_file(7);
  const Mapping mapping(fd.get(), 16 * kPage);
  mapping.data()[0] = std::byte{0x77};
  const auto refused = [](int result) { return result < 0 && errno == EROFS; };
  EXPECT_TRUE(refused(static_cast<int>(pwrite(fd.get(), "x", 1, 0))));
  EXPECT_TRUE(refused(ftruncate(fd.get(), 0)));
  EXPECT_TRUE(refused(fchmod(fd.get(), 0)));
  EXPECT_TRUE(refused(fallocate(fd.get(), 0, 0, 1 << 20)));
  EXPECT_TRUE(refused(unlink(fs_->path(7).c_str())));
  EXPECT_TRUE(refused(mkdir((options_.mount_point + "/d").c_str(), 0755)));
  EXPECT_TRUE(refused(::open((options_.mount_point + "/f").c_str(), O_CREAT | O_RDWR, 0644)));
  EXPECT_TRUE(refused(rename(fs_->path(7).c_str(), (options_.mount_point + "/8").c_str())));
  EXPECT_EQ(fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8 * kPage), 0);
  EXPECT_EQ(mapping.data()[0], std::byte{0x77}) << "private pages stay";
  EXPECT_EQ(read_word(fd.get(), 0), pattern(0, 1));
  EXPECT_EQ(read_word(fd.get(), 9 * kPage), pattern(9 * kPage, 1));
}

TEST_F(LazyFsTest, WhatIsWrittenThroughASharedMappingGoesAway) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  add_pattern(7, 16 * kPage);
  const Fd fd = open_file(7);
  const Mapping victim(fd.get(), 16 * kPage);
  const Mapping shared(fd.get(), 16 * kPage, MAP_SHARED);
  shared.data()[3 * kPage] = std::byte{0x66};
  EXPECT_LT(msync(shared.data(), 16 * kPage, MS_SYNC), 0);
  while (victim.word(3 * kPage) != pattern(3 * kPage, 1)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST_F(LazyFsTest, UnboundReadsZerosUntilBound) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  ASSERT_TRUE(fs_->add(7, 8 * kPage));
  const Fd fd = open_file(7);
  const Mapping mapping(fd.get(), 8 * kPage);
  EXPECT_EQ(mapping.word(kPage), 0U);
  mapping.data()[0] = std::byte{9};  // a private page survives the bind
  auto content = std::make_shared<PatternContent>(8 * kPage);
  EXPECT_EQ(fs_->bind(8, content).error().code, Code::not_found);
  EXPECT_EQ(fs_->bind(7, std::make_shared<PatternContent>(kPage)).error().code, Code::invalid);
  ASSERT_TRUE(fs_->bind(7, content));
  EXPECT_EQ(fs_->bind(7, content).error().code, Code::wrong_state);
  EXPECT_EQ(mapping.word(kPage), pattern(kPage, 1));
  EXPECT_EQ(mapping.data()[0], std::byte{9});
  EXPECT_EQ(read_word(fd.get(), 0), pattern(0, 1));
  const auto statistics = fs_->statistics(7);
  ASSERT_TRUE(statistics);
  EXPECT_GT(statistics->zero_bytes, 0U);
}

// Readers fault the file in while it is bound; once bind() has returned, no read may show a zero,
// and none may be left in the cache.
TEST_F(LazyFsTest, NoZeroSurvivesABindUnderReaders) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  constexpr uint64_t kSize = 2 << 20;
  std::atomic<int> stale = 0;
  for (uint64_t number = 2; number < 42; ++number) {
    ASSERT_TRUE(fs_->add(number, kSize));
    const Fd fd = open_file(number);
    const Mapping mapping(fd.get(), kSize);
    if (number % 2 == 0) madvise(mapping.data(), kSize, MADV_RANDOM);
    std::atomic<bool> bound = false;
    std::atomic<bool> stop = false;
    std::atomic<int> running = 0;
    std::vector<std::jthread> threads;
    for (unsigned seed = 0; seed < 3; ++seed) {
      threads.emplace_back([&, seed] {
        std::mt19937 random(seed + static_cast<unsigned>(number) * 16);
        ++running;
        while (!stop) {
          const uint64_t offset = random() % (kSize / kPage) * kPage;
          const bool was_bound = bound;
          const uint64_t word = seed == 0 ? read_word(fd.get(), offset) : mapping.word(offset);
          if (word != pattern(offset, 1) && (was_bound || word != 0)) ++stale;
        }
      });
    }
    while (running < 3) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(number * 50));
    const auto result = fs_->bind(number, std::make_shared<PatternContent>(kSize));
    bound = true;
    for (uint64_t offset = 0; offset < kSize; offset += kPage) {
      if (mapping.word(offset) != pattern(offset, 1)) ++stale;
    }
    stop = true;
    threads.clear();
    ASSERT_TRUE(result) << result.error().message;
    ASSERT_EQ(stale, 0);
  }
}

TEST_F(LazyFsTest, StoredPagesNeedNoRead) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  constexpr uint64_t kSize = (3 << 20) + 100;
  constexpr uint64_t kPadded = (3 << 20) + kPage;
  ASSERT_TRUE(fs_->add(7, kSize));
  std::vector<std::byte> data(kPadded);
  fill_pattern(0, data, 1);
  EXPECT_EQ(fs_->store(7, 0, data).error().code, Code::wrong_state) << "not bound yet";
  auto content = std::make_shared<PatternContent>(kSize);
  ASSERT_TRUE(fs_->bind(7, content));
  EXPECT_EQ(fs_->store(8, 0, data).error().code, Code::not_found);
  EXPECT_EQ(fs_->store(7, 1, data).error().code, Code::invalid);
  EXPECT_EQ(fs_->store(7, kPage, data).error().code, Code::invalid);
  EXPECT_EQ(fs_->store(7, 0, std::span(data).first(100)).error().code, Code::invalid);
  const auto stored = fs_->store(7, 0, data);
  ASSERT_TRUE(stored) << stored.error().message;
  const Fd fd = open_file(7);
  data.resize(kSize);
  EXPECT_EQ(read_whole(fd.get(), kSize), data) << "and it did not grow";
  EXPECT_EQ(content->reads, 0);
  const auto statistics = fs_->statistics(7);
  ASSERT_TRUE(statistics);
  EXPECT_EQ(statistics->stored_bytes, kSize);
  EXPECT_EQ(statistics->resident_bytes, kPadded);
  EXPECT_EQ(statistics->reads, 0U);
}

TEST_F(LazyFsTest, StatisticsCount) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  add_pattern(7, 256 * kPage);
  EXPECT_EQ(fs_->statistics(8).error().code, Code::not_found);
  EXPECT_EQ(fs_->statistics(7)->resident_bytes, 0U);
  const Fd fd = open_file(7);
  posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);
  for (uint64_t page = 0; page < 10; ++page) read_word(fd.get(), page * 20 * kPage);
  const auto statistics = fs_->statistics(7);
  ASSERT_TRUE(statistics);
  EXPECT_EQ(statistics->reads, 10U);
  EXPECT_EQ(statistics->bytes, 10 * kPage);
  EXPECT_EQ(statistics->zero_bytes, 0U);
  EXPECT_EQ(statistics->waiting, 0U);
  EXPECT_EQ(statistics->resident_bytes, 10 * kPage);
  EXPECT_GT(statistics->latency_p50_ns, 0U);
  EXPECT_GE(statistics->latency_p99_ns, statistics->latency_p50_ns);
}

TEST_F(LazyFsTest, RemovedFileStaysReadableForItsHolders) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  auto content = add_pattern(7, 64 * kPage);
  const std::weak_ptr<PatternContent> watch = content;
  content.reset();
  {
    const Fd fd = open_file(7);
    const Mapping mapping(fd.get(), 64 * kPage);
    madvise(mapping.data(), 64 * kPage, MADV_RANDOM);
    EXPECT_EQ(mapping.word(0), pattern(0, 1));
    fs_->remove(7);
    fs_->remove(7);
    EXPECT_LT(::open(fs_->path(7).c_str(), O_RDONLY), 0);
    EXPECT_EQ(mapping.word(40 * kPage), pattern(40 * kPage, 1));
    EXPECT_EQ(fs_->add(7, kPage).error().code, Code::exists);
    EXPECT_EQ(fs_->statistics(7).error().code, Code::not_found);
  }
  while (!watch.expired()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

TEST_F(LazyFsTest, ThousandCyclesLeakNothing) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  std::vector<std::weak_ptr<PatternContent>> watches;
  for (uint64_t number = 2; number < 1002; ++number) {
    ASSERT_TRUE(fs_->add(number, 4 * kPage));
    auto content = std::make_shared<PatternContent>(4 * kPage);
    watches.push_back(content);
    const Fd fd = number % 3 == 0 ? Fd() : open_file(number);
    if (number % 2 == 0) read_word(fd.get(), 0);
    ASSERT_TRUE(fs_->bind(number, std::move(content)));
    if (fd) {
      ASSERT_EQ(read_word(fd.get(), 0), pattern(0, 1));
    }
    fs_->remove(number);
  }
  for (const auto& watch : watches) {
    while (!watch.expired()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(std::filesystem::is_empty(options_.mount_point));
  EXPECT_TRUE(fs_->add(2, kPage)) << "the kernel has forgotten it, and so have we";
}

TEST_F(LazyFsTest, SlowContentHoldsUpOnlyItsReaders) {
  options_.threads = 1;
  ASSERT_NO_FATAL_FAILURE(start_fs());
  auto gated = std::make_shared<GatedContent>(64 * kPage);
  ASSERT_TRUE(fs_->add(7, 64 * kPage));
  ASSERT_TRUE(fs_->bind(7, gated));
  add_pattern(8, 4 << 20);
  const Fd slow = open_file(7);
  posix_fadvise(slow.get(), 0, 0, POSIX_FADV_RANDOM);
  std::atomic<int> right = 0;
  std::vector<std::jthread> readers;
  for (uint64_t i = 0; i < 20; ++i) {
    readers.emplace_back([&, i] {
      if (read_word(slow.get(), i * kPage) == pattern(i * kPage, 1)) ++right;
    });
  }
  gated->wait_inside(20);
  EXPECT_EQ(fs_->statistics(7)->waiting, 20U);
  const Fd quick = open_file(8);
  EXPECT_EQ(read_whole(quick.get(), 4 << 20).size(), size_t{4 << 20});
  gated->open();
  readers.clear();
  EXPECT_EQ(right, 20);
}

TEST_F(LazyFsTest, LostContentIsAnErrorNeverZeros) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  ASSERT_TRUE(fs_->add(7, kPage));
  ASSERT_TRUE(fs_->bind(7, std::make_shared<FailingContent>(kPage)));
  const Fd fd = open_file(7);
  char byte = 0;
  EXPECT_LT(pread(fd.get(), &byte, 1, 0), 0);
  EXPECT_EQ(errno, EIO);
}

TEST_F(LazyFsTest, BadNumbersAndTablesAreRefused) {
  ASSERT_NO_FATAL_FAILURE(open_fs());
  EXPECT_EQ(fs_->add(0, 1).error().code, Code::invalid);
  EXPECT_EQ(fs_->add(1, 1).error().code, Code::invalid);
  EXPECT_EQ(fs_->add(uint64_t{1} << 63, 1).error().code, Code::invalid);
  ASSERT_TRUE(fs_->add(2, 1));
  EXPECT_EQ(fs_->add(2, 1).error().code, Code::exists);
  auto options = options_;
  const Fd empty(memfd_create("empty", MFD_CLOEXEC));
  options.table_fd = empty.get();
  EXPECT_EQ(LazyFs::open(options).error().code, Code::invalid);
  options.table_fd = -1;
  EXPECT_EQ(LazyFs::open(options).error().code, Code::invalid);
  options = options_;
  options.fuse_fd = empty.get();
  EXPECT_EQ(LazyFs::open(options).error().code, Code::invalid);
}

TEST_F(LazyFsTest, SecondMountIsRefusedAndDeadOneReplaced) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  add_pattern(7, kPage);
  const Fd old = open_file(7);
  const auto second = LazyFs::open(options_);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::exists);
  EXPECT_NE(second.error().message.find("umount -l " + options_.mount_point), std::string::npos)
      << second.error().message;
  EXPECT_EQ(read_word(old.get(), 0), pattern(0, 1)) << "the first goes on";
  fs_.reset();  // nobody else holds /dev/fuse: the mount is dead
  struct stat status {};
  EXPECT_LT(stat((options_.mount_point + "/8").c_str(), &status), 0);
  EXPECT_EQ(errno, ENOTCONN);
  ASSERT_NO_FATAL_FAILURE(start_fs());
  add_pattern(7, kPage);
  EXPECT_EQ(read_word(open_file(7).get(), 0), pattern(0, 1));
}

TEST_F(LazyFsTest, UnmountEndsTheMount) {
  ASSERT_NO_FATAL_FAILURE(start_fs());
  add_pattern(7, 8 * kPage);
  const Fd fd = open_file(7);
  posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);
  fs_->unmount();
  EXPECT_TRUE(std::filesystem::is_empty(options_.mount_point));
  EXPECT_EQ(read_word(fd.get(), 4 * kPage), pattern(4 * kPage, 1)) << "open files go on";
  fs_->unmount();
}

}  // namespace
}  // namespace snow::test
