// Layers in files, and layers in the memory of a stopped process.
#include "image/layer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cstring>
#include <thread>

#include "image/test_folder.h"

namespace snow {
namespace {

constexpr size_t kPage = 4096;

Bytes read_part(Layer& layer, uint64_t offset, size_t length) {
  Bytes bytes(length);
  const auto result = layer.read(offset, bytes);
  EXPECT_TRUE(result) << result.error().message;
  return bytes;
}

Bytes part(const Bytes& bytes, size_t offset, size_t length) {
  return {bytes.begin() + static_cast<long>(offset),
          bytes.begin() + static_cast<long>(offset + length)};
}

TEST(FileLayer, ReadsAndReportsItsEnd) {
  const TestFolder folder;
  const Bytes bytes = some_bytes(10000, 1);
  write_bytes(folder / "a", bytes);
  const auto layer = FileLayer::open(folder / "a", false).value();
  EXPECT_EQ(layer->size_bytes(), 10000u);
  EXPECT_EQ(read_part(*layer, 0, 10000), bytes);
  EXPECT_EQ(read_part(*layer, 4000, 1000), part(bytes, 4000, 1000));
  Bytes over(2);
  EXPECT_EQ(layer->read(9999, over).error().code, Code::corrupt);
}

TEST(FileLayer, RemovesOnlyWhatItOwns) {
  const TestFolder folder;
  for (const char* name : {"kept", "owned", "not_owned"}) write_bytes(folder / name, Bytes(10));
  FileLayer::open(folder / "kept", true).value()->keep();
  FileLayer::open(folder / "owned", true).value().reset();
  FileLayer::open(folder / "not_owned", false).value().reset();
  EXPECT_TRUE(std::filesystem::exists(folder / "kept"));
  EXPECT_FALSE(std::filesystem::exists(folder / "owned"));
  EXPECT_TRUE(std::filesystem::exists(folder / "not_owned"));
}

TEST(FileLayer, RefusesWhatIsNoFile) {
  const TestFolder folder;
  EXPECT_EQ(FileLayer::open(folder / "nothing", true).error().code, Code::not_found);
  EXPECT_EQ(FileLayer::open(folder / "", true).error().code, Code::invalid);
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(FileLayer::open(folder / "fifo", true).error().code, Code::invalid);
  EXPECT_TRUE(std::filesystem::exists(folder / "fifo"));
}

TEST(FileLayer, FindsDataBetweenHoles) {
  const TestFolder folder;
  {
    const Fd fd(::open((folder / "a").c_str(), O_RDWR | O_CREAT, 0600));
    ASSERT_TRUE(write_all_at(fd.get(), 1 << 20, some_bytes(kPage, 1), "a"));
    ASSERT_TRUE(write_all_at(fd.get(), 3 << 20, some_bytes(2 * kPage, 2), "a"));
    ASSERT_EQ(::ftruncate(fd.get(), 8 << 20), 0);
  }
  const auto layer = FileLayer::open(folder / "a", false).value();
  EXPECT_EQ(layer->data_ranges().value(),
            (std::vector<Range>{{1 << 20, kPage}, {3 << 20, 2 * kPage}}));
}

// A stopped child whose memory holds `bytes` at address(); killed at the end of the test, also by
// the kernel if the test dies.
class Stopped {
 public:
  explicit Stopped(const Bytes& bytes) : size_(bytes.size()) {
    memory_ = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory_, MAP_FAILED);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      std::memcpy(memory_, bytes.data(), size_);
      ::raise(SIGSTOP);
      ::_exit(0);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, WUNTRACED), pid_);
    EXPECT_TRUE(WIFSTOPPED(status));
  }
  ~Stopped() {
    kill();
    ::munmap(memory_, size_);
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] uint64_t address() const { return reinterpret_cast<uint64_t>(memory_); }

 private:
  const size_t size_;
  void* memory_;
  pid_t pid_ = -1;
};

constexpr size_t kPages = 64;
const std::vector<Range> kRanges = {
    {2 * kPage, kPage}, {10 * kPage, 20 * kPage}, {40 * kPage, kPage}, {41 * kPage, 3 * kPage}};

class DeltaLayerTest : public testing::Test {
 protected:
  std::shared_ptr<DeltaLayer> make(const std::string& path) const {
    return std::make_shared<DeltaLayer>(child_.pid(), child_.address(), kRanges, path);
  }
  void check(DeltaLayer& layer) const {
    for (const Range& range : kRanges) {
      EXPECT_EQ(read_part(layer, range.offset, range.length),
                part(bytes_, range.offset, range.length));
    }
    EXPECT_EQ(read_part(layer, 15 * kPage + 7, 5000), part(bytes_, 15 * kPage + 7, 5000));
    EXPECT_EQ(read_part(layer, 40 * kPage, 4 * kPage), part(bytes_, 40 * kPage, 4 * kPage));
  }

  const TestFolder folder_;
  const Bytes bytes_ = some_bytes(kPages * kPage, 5);
  Stopped child_{bytes_};
};

bool go_on() { return true; }

TEST_F(DeltaLayerTest, ReadsFromTheProcessThenFromTheFile) {
  const auto layer = make(folder_ / "delta");
  EXPECT_EQ(layer->path(), "");
  EXPECT_EQ(layer->size_bytes(), 44 * kPage);
  check(*layer);
  int steps = 0;
  const auto copied = layer->copy_out(3 * kPage, [&] { return ++steps > 0; });
  ASSERT_TRUE(copied) << copied.error().message;
  EXPECT_GE(steps, 7);
  EXPECT_TRUE(layer->copied());
  EXPECT_EQ(layer->path(), folder_ / "delta");
  child_.kill();
  check(*layer);
  // The file has the offsets of the image, and nothing between the ranges.
  const Bytes file = read_bytes(folder_ / "delta");
  ASSERT_EQ(file.size(), 44 * kPage);
  EXPECT_EQ(part(file, 10 * kPage, 20 * kPage), part(bytes_, 10 * kPage, 20 * kPage));
  EXPECT_EQ(part(file, 0, 2 * kPage), Bytes(2 * kPage));
  EXPECT_LE(allocated(folder_ / "delta"), 26 * kPage);
  EXPECT_TRUE(layer->copy_out(kPage, go_on));  // nothing to do
}

TEST_F(DeltaLayerTest, TheFileGoesWithTheLayerUnlessKept) {
  auto layer = make(folder_ / "delta");
  ASSERT_TRUE(layer->copy_out(1 << 20, go_on));
  EXPECT_EQ(folder_.files(), 1u);
  layer.reset();
  EXPECT_EQ(folder_.files(), 0u);
  layer = make(folder_ / "delta");
  ASSERT_TRUE(layer->copy_out(1 << 20, go_on));
  layer->keep();
  layer.reset();
  EXPECT_EQ(folder_.files(), 1u);
}

TEST_F(DeltaLayerTest, ManySmallRangesInOneStep) {
  std::vector<Range> ranges;
  for (uint64_t at = 0; at + 50 <= bytes_.size(); at += 100) ranges.push_back({at, 50});
  ASSERT_GT(ranges.size(), 2000u);  // more than one call can take
  DeltaLayer layer(child_.pid(), child_.address(), ranges, folder_ / "delta");
  ASSERT_TRUE(layer.copy_out(1 << 20, go_on));
  for (const Range& range : ranges) {
    ASSERT_EQ(read_part(layer, range.offset, range.length),
              part(bytes_, range.offset, range.length));
  }
}

TEST_F(DeltaLayerTest, GivenUpOrFailedCopiesLeaveReadsWorking) {
  const auto layer = make(folder_ / "delta");
  int steps = 0;
  EXPECT_EQ(layer->copy_out(kPage, [&] { return ++steps < 3; }).error().code, Code::wrong_state);
  EXPECT_FALSE(layer->copied());
  EXPECT_EQ(folder_.files(), 0u);
  check(*layer);
  const auto nowhere = make(folder_ / "no/folder");
  EXPECT_EQ(nowhere->copy_out(kPage, go_on).error().code, Code::host_failed);
  check(*nowhere);
  ASSERT_TRUE(layer->copy_out(kPage, go_on));  // again
  check(*layer);
}

TEST_F(DeltaLayerTest, AFileSizeLimitLeavesReadsWorking) {
  const auto layer = make(folder_ / "delta");
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{20 * kPage, before.rlim_max};
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto result = layer->copy_out(kPage, go_on);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, old_handler);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Code::host_failed);
  EXPECT_EQ(folder_.files(), 0u);
  check(*layer);
}

TEST_F(DeltaLayerTest, AFullDiskLeavesReadsWorking) {
  // In a thread with a mount namespace of its own: the mount goes away with the thread.
  std::string skipped;
  std::thread([&] {
    if (::unshare(CLONE_FS | CLONE_NEWNS) < 0 ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) < 0) {
      skipped = std::string("no mount namespace: ") + strerror(errno);
      return;
    }
    const std::string disk = folder_ / "disk";
    ASSERT_EQ(::mkdir(disk.c_str(), 0700), 0);
    ASSERT_EQ(::mount("none", disk.c_str(), "tmpfs", 0, "size=64k"), 0);
    const auto layer = make(disk + "/delta");
    const auto result = layer->copy_out(kPage, go_on);
    ASSERT_FALSE(result);
    EXPECT_NE(result.error().message.find("No space left"), std::string::npos);
    EXPECT_TRUE(std::filesystem::is_empty(disk));
    check(*layer);
  }).join();
  if (!skipped.empty()) GTEST_SKIP() << skipped;
}

TEST_F(DeltaLayerTest, AProcessThatIsGoneIsAnErrorNotZeros) {
  const auto layer = make(folder_ / "delta");
  child_.kill();
  Bytes bytes(kPage);
  EXPECT_EQ(layer->read(2 * kPage, bytes).error().code, Code::host_failed);
  EXPECT_EQ(layer->copy_out(kPage, go_on).error().code, Code::host_failed);
  EXPECT_EQ(folder_.files(), 0u);
}

TEST_F(DeltaLayerTest, UnmappedMemoryIsAnErrorAfterAShortRead) {
  // The last range leaves the mapping; what is before it is read.
  const uint64_t end = bytes_.size();
  DeltaLayer layer(child_.pid(), child_.address(), {{end - kPage, uint64_t{1} << 40}},
                   folder_ / "delta");
  EXPECT_EQ(read_part(layer, end - kPage, kPage), part(bytes_, end - kPage, kPage));
  Bytes bytes(1 << 20);
  EXPECT_EQ(layer.read(end - kPage + (uint64_t{1} << 39), bytes).error().code, Code::host_failed);
}

TEST_F(DeltaLayerTest, ReadersGoOnWhileItSwitches) {
  for (int round = 0; round < 5; ++round) {
    const auto layer = make(folder_ / "delta");
    std::atomic<bool> stop = false;
    std::atomic<int> reads = 0;
    std::vector<std::thread> readers;
    for (uint32_t seed = 0; seed < 3; ++seed) {
      readers.emplace_back([&, seed] {
        std::mt19937 random(seed);
        Bytes bytes(2 * kPage);
        while (!stop) {
          const size_t at = (10 + random() % 19) * kPage;
          ASSERT_TRUE(layer->read(at, bytes));
          ASSERT_EQ(bytes, part(bytes_, at, bytes.size()));
          ++reads;
        }
      });
    }
    const auto copied = layer->copy_out(kPage, [&] {
      const int seen = reads;
      while (reads == seen) std::this_thread::yield();
      return true;
    });
    EXPECT_TRUE(copied);
    if (round == 4) child_.kill();  // allowed from now on
    for (const int seen = reads; reads < seen + 100;) std::this_thread::yield();
    stop = true;
    for (auto& reader : readers) reader.join();
  }
}

TEST_F(DeltaLayerTest, ReadsOutsideItsRangesAreABug) {
  const auto layer = make(folder_ / "delta");
  Bytes bytes(2 * kPage);
  const auto read_outside = [&] {
    ::signal(SIGABRT, SIG_DFL);  // a sanitizer does not report this abort
    (void)layer->read(2 * kPage, bytes);
  };
  EXPECT_DEATH(read_outside(), "covers");
}

}  // namespace
}  // namespace snow
