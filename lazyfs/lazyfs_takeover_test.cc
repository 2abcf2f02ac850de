// A daemon is killed with -9, or goes in good order, and the next one takes over its mount: the
// test holds /dev/fuse and the table, as the keeper does.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <future>
#include <thread>

#include "lazyfs/test_support.h"

namespace snow::test {
namespace {

constexpr uint64_t kSize = 64 * kPage;

// Kills and reaps the daemon also when the test fails.
class Child {
 public:
  explicit Child(pid_t pid) : pid_(pid) {}
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { kill_it(); }
  void kill_it() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_;
};

// Tells through a pipe that a read is inside, and never comes back.
class StuckContent final : public Content {
 public:
  explicit StuckContent(int pipe) : pipe_(pipe) {}
  [[nodiscard]] uint64_t size() const override { return kSize; }
  Result<void> read(uint64_t, std::span<std::byte>) override {
    if (write(pipe_, "r", 1) != 1) _exit(3);
    for (;;) pause();
  }

 private:
  const int pipe_;
};

class TakeoverTest : public LazyFsFixture, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    LazyFsFixture::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    int pipe_fds[2];
    ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
    told_ = Fd(pipe_fds[0]);
    tell_ = Fd(pipe_fds[1]);
    options_.use_resend = GetParam();
    ASSERT_NO_FATAL_FAILURE(open_fs());  // mounts; the descriptor is kept here from now on
    kept_ = Fd(fcntl(fs_->fuse_fd(), F_DUPFD_CLOEXEC, 3));
    fs_.reset();
    options_.fuse_fd = kept_.get();
  }

  // A daemon that shows file 7 (stuck), 8 (pattern) and 9 (unbound).
  pid_t fork_daemon() {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    auto fs = LazyFs::open(options_);
    const bool good =
        fs && (*fs)->add(7, kSize) && (*fs)->bind(7, std::make_shared<StuckContent>(tell_.get())) &&
        (*fs)->add(8, kSize) && (*fs)->bind(8, std::make_shared<PatternContent>(kSize, 1)) &&
        (*fs)->add(9, kSize) && (*fs)->start() && write(tell_.get(), "s", 1) == 1;
    if (!good) _exit(2);
    for (;;) pause();
  }

  void wait_told(int count) {
    for (char byte = 0; count > 0; --count) ASSERT_EQ(read(told_.get(), &byte, 1), 1);
  }

  // The files again, the stuck one with a content that answers.
  void take_over(uint64_t salt) {
    ASSERT_NO_FATAL_FAILURE(open_fs());
    add_pattern(7, kSize, salt);
    add_pattern(8, kSize, salt);
    ASSERT_TRUE(fs_->add(9, kSize));
  }

  void start() {
    const auto started = fs_->start();
    ASSERT_TRUE(started) << started.error().message;
  }

  [[nodiscard]] std::string file(int number) const {
    return options_.mount_point + "/" + std::to_string(number);
  }

  Fd told_;
  Fd tell_;
  Fd kept_;
};

TEST_P(TakeoverTest, ReadsUnderWayAtAKillAreAnsweredByTheNext) {
  Child daemon(fork_daemon());
  ASSERT_NO_FATAL_FAILURE(wait_told(1));
  constexpr int kReaders = 12;  // more than the next daemon has threads
  const Fd fd(::open(file(7).c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(fd);
  const Mapping mapping(fd.get(), kSize);
  madvise(mapping.data(), kSize, MADV_RANDOM);
  std::vector<std::future<uint64_t>> words;
  for (uint64_t i = 0; i < kReaders; ++i) {
    words.push_back(
        std::async(std::launch::async, [&, i] { return mapping.word(i * 4 * kPage + 16); }));
  }
  wait_told(kReaders);
  daemon.kill_it();
  // And one that comes while nobody is there.
  auto late = std::async(std::launch::async, [&] { return mapping.word(63 * kPage); });
  options_.threads = 2;
  take_over(1);
  start();
  for (uint64_t i = 0; i < kReaders; ++i) {
    const uint64_t offset = i * 4 * kPage + 16;
    EXPECT_EQ(words[i].get(), pattern(offset, 1));
  }
  EXPECT_EQ(late.get(), pattern(63 * kPage, 1));
}

TEST_P(TakeoverTest, CacheSurvivesButZerosDoNot) {
  {
    Child daemon(fork_daemon());
    ASSERT_NO_FATAL_FAILURE(wait_told(1));
  }
  ASSERT_NO_FATAL_FAILURE(take_over(1));
  start();
  const Fd eight = open_file(8);
  const Fd nine = open_file(9);
  posix_fadvise(eight.get(), 0, 0, POSIX_FADV_RANDOM);
  EXPECT_EQ(read_word(eight.get(), 0), pattern(0, 1));
  EXPECT_EQ(read_word(nine.get(), 0), 0U);
  fs_.reset();
  // The next daemon binds 9 before it starts. Its contents have another salt, so that it shows
  // whose bytes are read.
  ASSERT_NO_FATAL_FAILURE(take_over(2));
  ASSERT_TRUE(fs_->bind(9, std::make_shared<PatternContent>(kSize, 2)));
  start();
  EXPECT_EQ(read_word(eight.get(), 0), pattern(0, 1)) << "still cached";
  EXPECT_EQ(read_word(eight.get(), 9 * kPage), pattern(9 * kPage, 2));
  EXPECT_EQ(read_word(nine.get(), 0), pattern(0, 2));
}

// A daemon that ends in good order does not wait for a source that does not answer.
TEST_P(TakeoverTest, DestructorLeavesTheMountAndTheReadsUnderWay) {
  ASSERT_NO_FATAL_FAILURE(open_fs());
  auto gated = std::make_shared<GatedContent>(kSize);
  ASSERT_TRUE(fs_->add(7, kSize));
  ASSERT_TRUE(fs_->bind(7, gated));
  start();
  const Fd fd = open_file(7);
  posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);
  auto word = std::async(std::launch::async, [&] { return read_word(fd.get(), 5 * kPage); });
  gated->wait_inside(1);
  fs_.reset();
  ASSERT_NO_FATAL_FAILURE(take_over(2));
  start();
  EXPECT_EQ(word.get(), pattern(5 * kPage, 2));
  gated->open();  // the abandoned thread ends by itself
  EXPECT_EQ(read_word(fd.get(), 6 * kPage), pattern(6 * kPage, 2));
}

TEST_P(TakeoverTest, RemovedFileOfAnEarlierDaemonStaysUntilForgotten) {
  {
    Child daemon(fork_daemon());
    ASSERT_NO_FATAL_FAILURE(wait_told(1));
    EXPECT_TRUE(Fd(::open(file(9).c_str(), O_RDWR | O_CLOEXEC)));
  }
  Fd fd;
  {
    Child daemon(fork_daemon());
    ASSERT_NO_FATAL_FAILURE(wait_told(1));
    fd = Fd(::open(file(8).c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(fd);
    posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);
    EXPECT_EQ(read_word(fd.get(), 0), pattern(0, 1));
  }
  ASSERT_NO_FATAL_FAILURE(open_fs());
  auto content = std::make_shared<PatternContent>(kSize, 1);
  const std::weak_ptr<PatternContent> watch = content;
  ASSERT_TRUE(fs_->add(8, kSize));
  ASSERT_TRUE(fs_->bind(8, std::move(content)));
  start();
  fs_->remove(8);
  EXPECT_EQ(read_word(fd.get(), 30 * kPage), pattern(30 * kPage, 1));
  fd.reset();
  while (!watch.expired()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// A daemon that waits in the kernel for a read of its own cannot be killed; what it holds goes away
// all the same, so that the next daemon may come and answer the read.
TEST_P(TakeoverTest, KilledWhileItWaitsInTheKernel) {
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    told_.reset();
    auto fs = LazyFs::open(options_);
    if (!fs || !(*fs)->add(7, kSize) ||
        !(*fs)->bind(7, std::make_shared<StuckContent>(tell_.get())) || !(*fs)->start()) {
      _exit(2);
    }
    if (write(tell_.get(), "s", 1) != 1) _exit(2);
    for (;;) {
      // Waits for ever as soon as a page of the file is being read.
      std::vector<std::byte> page(kPage);
      fill_pattern(5 * kPage, page, 1);
      if (!(*fs)->store(7, 5 * kPage, page)) _exit(2);
      usleep(1000);
      const Fd fd(::open(file(7).c_str(), O_RDWR | O_CLOEXEC));
      posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
    }
  }
  Child daemon(pid);
  tell_.reset();
  ASSERT_NO_FATAL_FAILURE(wait_told(1));
  const Fd fd(::open(file(7).c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(fd);
  posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);
  std::atomic<bool> killed = false;
  auto word = std::async(std::launch::async, [&] {
    uint64_t value = 0;
    do {  // finds what the daemon stored, until the page is gone and a read really waits
      value = read_word(fd.get(), 5 * kPage);
    } while (!killed && value == pattern(5 * kPage, 1));
    return value;
  });
  ASSERT_NO_FATAL_FAILURE(wait_told(1));
  usleep(20'000);  // now the daemon most likely waits, too
  ::kill(pid, SIGKILL);
  killed = true;
  char byte = 0;
  EXPECT_EQ(read(told_.get(), &byte, 1), 0) << "its end of the pipe is closed";
  ASSERT_NO_FATAL_FAILURE(take_over(1));
  start();
  EXPECT_EQ(word.get(), pattern(5 * kPage, 1));
}

// Daemons are killed at random moments while readers go on; no read may fail or show wrong bytes.
TEST_P(TakeoverTest, ReadersNoticeNothingOfManyKills) {
  const auto serve = [this] {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    auto fs = LazyFs::open(options_);
    if (!fs || !(*fs)->add(8, kSize) ||
        !(*fs)->bind(8, std::make_shared<PatternContent>(kSize, 1)) || !(*fs)->start()) {
      _exit(2);
    }
    for (;;) pause();
  };
  // The readers are a process of their own: this one stays single-threaded, as it forks.
  auto daemon = std::make_unique<Child>(serve());
  const pid_t reader = fork();
  if (reader == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const Fd fd(::open(file(8).c_str(), O_RDWR | O_CLOEXEC));
    std::atomic<bool> good = static_cast<bool>(fd);
    std::vector<std::jthread> threads;
    for (uint64_t first = 0; first < 3; ++first) {
      threads.emplace_back([&, first] {
        for (uint64_t i = first; i < 6000 && good; i += 3) {
          const uint64_t offset = i % 64 * kPage;
          if (i % 64 < 3) posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
          if (read_word(fd.get(), offset) != pattern(offset, 1)) good = false;
        }
      });
    }
    threads.clear();
    _exit(good ? 0 : 1);
  }
  int status = 0;
  int kills = 0;
  while (waitpid(reader, &status, WNOHANG) == 0) {
    usleep(static_cast<useconds_t>(5000 + kills * 137 % 3000));
    if (kills == 40) continue;
    daemon.reset();
    daemon = std::make_unique<Child>(serve());
    ++kills;
  }
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

INSTANTIATE_TEST_SUITE_P(ResendOrTable, TakeoverTest, testing::Bool(), [](const auto& mode) {
  return std::string(mode.param ? "Resend" : "Table");
});

}  // namespace
}  // namespace snow::test
