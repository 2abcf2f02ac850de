#include "qemu/private_pages.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <set>
#include <string>

#include "base/fd.h"
#include "base/file.h"

namespace snow {
namespace {

constexpr uint64_t kPage = 4096;

// A file in tmpfs, half holes, and a child process that has it mapped.
class Mapped {
 public:
  // `work` runs in the child, on the mapping, before the constructor returns.
  Mapped(uint64_t size_bytes, int flags, const std::function<void(char*)>& work) {
    std::string path = "/dev/shm/snow-pages-test-XXXXXX";
    file_ = Fd(mkstemp(path.data()));
    EXPECT_TRUE(file_.valid());
    unlink(path.c_str());
    EXPECT_EQ(ftruncate(file_.get(), static_cast<off_t>(size_bytes)), 0);
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      char* memory = static_cast<char*>(
          mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, flags, file_.get(), 0));
      if (memory == MAP_FAILED) _exit(1);
      work(memory);
      (void)!write(ready[1], "!", 1);
      for (;;) pause();
    }
    close(ready[1]);
    char byte = 0;
    EXPECT_EQ(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    EXPECT_EQ(fstat(file_.get(), &status_), 0);
  }
  ~Mapped() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  Result<PrivatePages> find(uint64_t size_bytes, bool scan) const {
    return find_private_pages(pid_, status_.st_ino, size_bytes, scan, status_.st_dev);
  }
  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const struct stat& status() const { return status_; }

 private:
  Fd file_;
  pid_t pid_ = -1;
  struct stat status_ {};
};

int64_t thread_cpu_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec;
}

std::set<uint64_t> pages_of(const PrivatePages& found) {
  std::set<uint64_t> pages;
  for (const Range& range : found.ranges) {
    for (uint64_t at = 0; at < range.length; at += kPage) pages.insert((range.offset + at) / kPage);
  }
  return pages;
}

// Random pages written (some with zeros), others read: exactly the written ones are private, by
// both methods. Swapped pages are not in this test: it would need a host with swap.
TEST(PrivatePages, FindsExactlyWhatWasWritten) {
  constexpr uint64_t kPages = 20'000;
  std::mt19937 random(7);
  std::set<uint64_t> written;
  std::vector<uint64_t> read;
  for (int i = 0; i < 5000; ++i) written.insert(random() % kPages);
  for (uint64_t page = 9000; page < 9600; ++page) written.insert(page);
  for (int i = 0; i < 5000; ++i) read.push_back(random() % kPages);
  const Mapped mapped(kPages * kPage, MAP_PRIVATE, [&](char* memory) {
    for (const uint64_t page : read) (void)*static_cast<volatile char*>(memory + page * kPage);
    for (const uint64_t page : written)
      *static_cast<volatile char*>(memory + page * kPage + 17) = page % 3 == 0 ? 0 : 5;
  });
  const auto fast = mapped.find(kPages * kPage, true);
  const auto slow = mapped.find(kPages * kPage, false);
  ASSERT_TRUE(fast) << fast.error().message;
  ASSERT_TRUE(slow) << slow.error().message;
  EXPECT_EQ(fast->ranges, slow->ranges);
  EXPECT_EQ(fast->address, slow->address);
  EXPECT_EQ(pages_of(*fast), written);
  EXPECT_EQ(fast->bytes(), written.size() * kPage);
  for (size_t i = 1; i < fast->ranges.size(); ++i)
    EXPECT_GT(fast->ranges[i].offset, fast->ranges[i - 1].offset + fast->ranges[i - 1].length);
}

// A written page that was discarded shows the file again and is not private any more; the areas
// into which advice and protection have split the mapping still count as one.
TEST(PrivatePages, DiscardedPagesAndSplitMappings) {
  constexpr uint64_t kPages = 1024;
  const Mapped mapped(kPages * kPage, MAP_PRIVATE, [&](char* memory) {
    memset(memory, 1, 512 * kPage);
    madvise(memory + 100 * kPage, 10 * kPage, MADV_DONTNEED);
    madvise(memory + 300 * kPage, 100 * kPage, MADV_DONTDUMP);
    mprotect(memory + 700 * kPage, kPage, PROT_READ);
  });
  for (const bool scan : {true, false}) {
    const auto found = mapped.find(kPages * kPage, scan);
    ASSERT_TRUE(found) << found.error().message;
    EXPECT_EQ(found->ranges, (std::vector<Range>{{0, 100 * kPage}, {110 * kPage, 402 * kPage}}));
  }
}

TEST(PrivatePages, RefusesWhatIsNotTheWholeImagePrivately) {
  const Mapped shared(16 * kPage, MAP_SHARED, [](char* memory) { memory[0] = 1; });
  EXPECT_EQ(shared.find(16 * kPage, true).error().code, Code::wrong_state);
  const Mapped mapped(16 * kPage, MAP_PRIVATE, [](char* memory) { memory[0] = 1; });
  EXPECT_EQ(mapped.find(32 * kPage, true).error().code, Code::wrong_state);
  EXPECT_EQ(mapped.find(16 * kPage + 1, true).error().code, Code::invalid);
  const auto& status = mapped.status();
  EXPECT_EQ(find_private_pages(mapped.pid(), status.st_ino, 16 * kPage, true, status.st_dev + 1)
                .error()
                .code,
            Code::not_found);
  EXPECT_TRUE(find_private_pages(mapped.pid(), status.st_ino, 16 * kPage));
  const Mapped hole(16 * kPage, MAP_PRIVATE,
                    [](char* memory) { munmap(memory + 4 * kPage, kPage); });
  EXPECT_EQ(hole.find(16 * kPage, true).error().code, Code::wrong_state);
  EXPECT_EQ(find_private_pages(2'000'000'000, 1, kPage).error().code, Code::not_found);
}

TEST(PrivatePages, ReadsMapsText) {
  const char* maps =
      "00400000-00401000 r-xp 00000000 08:01 99 /usr/bin/x\n"
      "7f0000000000-7f0000004000 rw-p 00000000 00:2a 5 /vm/memory (with spaces)\n"
      "7f0000004000-7f0000005000 r--p 00004000 00:2a 5 /vm/memory\n"
      "7f0000100000-7f0000101000 rw-p 00000000 00:2b 5 /elsewhere\n"
      "7f0000200000-7f0000201000 rw-p 00000000 00:00 0\n";
  const auto found = find_mapping(maps, 5, 0x5000, makedev(0, 0x2a));
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(*found, 0x7f0000000000u);
  EXPECT_EQ(find_mapping(maps, 5, 0x5000, 0).error().code, Code::wrong_state);  // two files
  EXPECT_EQ(find_mapping(maps, 6, 0x5000, 0).error().code, Code::not_found);
  EXPECT_EQ(find_mapping("", 5, 0x5000, 0).error().code, Code::not_found);
  EXPECT_EQ(find_mapping("rubbish\n-\n1-", 5, 0x5000, 0).error().code, Code::not_found);
}

// For the record: scattered pages all over, and few among many that were only read. With
// SNOW_BIG_TEST set in 2.5 GiB, otherwise in a tenth of it.
TEST(PrivatePages, Speed) {
  const uint64_t pages = (getenv("SNOW_BIG_TEST") != nullptr ? 2560u : 256u) * 256u;
  for (const bool many : {true, false}) {
    const Mapped mapped(pages * kPage, MAP_PRIVATE, [&](char* memory) {
      for (uint64_t page = 0; page < pages; ++page) {
        if (many ? page % 7 != 3 : page % 100 == 0) {
          *static_cast<volatile char*>(memory + page * kPage) = 1;
        } else if (!many && page % 2 == 0) {
          (void)*static_cast<volatile char*>(memory + page * kPage);
        }
      }
    });
    for (const bool scan : {true, false}) {
      const int64_t begin = thread_cpu_ns();
      const auto found = mapped.find(pages * kPage, scan);
      const int64_t end = thread_cpu_ns();
      ASSERT_TRUE(found) << found.error().message;
      printf("%s: %.1f ms of CPU time for %zu pages in %zu ranges\n",
             scan ? "PAGEMAP_SCAN" : "pagemap", static_cast<double>(end - begin) / 1e6,
             static_cast<size_t>(found->bytes() / kPage), found->ranges.size());
    }
  }
}

}  // namespace
}  // namespace snow
