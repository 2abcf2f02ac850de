// The keeper as its daemons see it: it is started, found again, replaced, killed; it starts and
// keeps processes. Every process here is real.
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <atomic>
#include <filesystem>

#include "keeper/protocol.h"
#include "keeper/test_keeper.h"
#include "lazyfs/lazyfs.h"

namespace snow {
namespace {

class KeeperLife : public KeeperTest {
 protected:
  [[nodiscard]] SpawnSpec sleeper(const std::string& id) const {
    return spec(id, {"/usr/bin/sleep", "1000"});
  }
  [[nodiscard]] size_t descriptors_of_keeper() const {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator("/proc/" + std::to_string(keeper_pid_) + "/fd")) {
      ++count;
    }
    return count;
  }
};

TEST_F(KeeperLife, IsStartedOnceAndFoundAgain) {
  EXPECT_TRUE(keeper_->started_now());
  EXPECT_EQ(::getsid(keeper_pid_), keeper_pid_);
  EXPECT_EQ(keeper_->pid(), keeper_pid_);
  struct stat status {};
  ASSERT_EQ(::stat((run_dir_ + "/keeper.sock").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  const pid_t first = keeper_pid_;
  keeper_.reset();
  connect();
  EXPECT_FALSE(keeper_->started_now());
  EXPECT_EQ(keeper_pid_, first);
}

TEST_F(KeeperLife, SecondDaemonIsRefused) {
  const auto second = Keeper::connect(options());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::exists);
  EXPECT_TRUE(keeper_->list());
}

TEST_F(KeeperLife, DescriptorsComeBackToTheNextDaemon) {
  EXPECT_FALSE(keeper_->fuse_fd()->valid());
  const Fd given(::memfd_create("given", MFD_CLOEXEC));
  ASSERT_TRUE(write_all_at(given.get(), 0, std::as_bytes(std::span("hello", 5)), "given"));
  ASSERT_TRUE(keeper_->keep_fuse_fd(given.get()));
  auto table = keeper_->table_fd();
  ASSERT_TRUE(table) << table.error().message;
  struct stat status {};
  ASSERT_EQ(::fstat(table->get(), &status), 0);
  EXPECT_EQ(static_cast<size_t>(status.st_size), lazyfs_table_bytes());
  char zero = 1;
  ASSERT_EQ(::pread(table->get(), &zero, 1, 100), 1);
  EXPECT_EQ(zero, 0);
  ASSERT_EQ(::pwrite(table->get(), "x", 1, 100), 1);

  keeper_.reset();
  connect();
  const auto fuse = keeper_->fuse_fd();
  ASSERT_TRUE(fuse && fuse->valid());
  char text[6] = {};
  ASSERT_EQ(::pread(fuse->get(), text, 5, 0), 5);
  EXPECT_STREQ(text, "hello");
  table = keeper_->table_fd();
  ASSERT_TRUE(table);
  ASSERT_EQ(::pread(table->get(), &zero, 1, 100), 1);
  EXPECT_EQ(zero, 'x');
}

TEST_F(KeeperLife, ReportsHowAProcessEnded) {
  const auto seven = keeper_->spawn(shell("a", "exit 7"));
  ASSERT_TRUE(seven) << seven.error().message;
  EXPECT_EQ(WEXITSTATUS(exits_.wait(*seven)), 7);
  const auto killed = keeper_->spawn(sleeper("b"));
  ASSERT_TRUE(killed);
  ASSERT_TRUE(keeper_->kill(*killed));
  EXPECT_EQ(exits_.wait(*killed), SIGKILL);

  const auto listed = keeper_->list();
  ASSERT_TRUE(listed);
  ASSERT_EQ(listed->size(), 2u);
  for (const KeptProcess& process : *listed) EXPECT_FALSE(process.running);
  EXPECT_TRUE(keeper_->kill(*killed));  // it is as was wanted
  keeper_->forget(*seven);
  keeper_->forget(*killed);
  EXPECT_TRUE(keeper_->list()->empty());
  EXPECT_EQ(keeper_->kill(*killed).error().code, Code::not_found);
}

TEST_F(KeeperLife, ProcessesOutliveTheDaemonAndExitsAreKept) {
  const auto lives = keeper_->spawn(sleeper("lives"));
  const auto ends = keeper_->spawn(sleeper("ends"));
  ASSERT_TRUE(lives && ends);
  keeper_.reset();
  ASSERT_EQ(::kill(*ends, SIGKILL), 0);
  ASSERT_TRUE(
      eventually([&] { return !std::filesystem::exists("/proc/" + std::to_string(*ends)); }));
  connect();
  EXPECT_EQ(exits_.wait(*ends), SIGKILL);
  EXPECT_TRUE(is_running(*lives));
  const auto listed = keeper_->list();
  ASSERT_TRUE(listed);
  ASSERT_EQ(listed->size(), 2u);
  for (const KeptProcess& process : *listed) {
    EXPECT_EQ(process.running, process.pid == *lives);
    EXPECT_EQ(process.id, process.pid == *lives ? "lives" : "ends");
    EXPECT_EQ(process.role, "test");
  }
}

// A daemon that stops frees what its callbacks use.
TEST_F(KeeperLife, NoCallbackRunsAfterItWasTakenBack) {
  std::atomic<bool> entered = false, returned = false;
  keeper_->on_exit([&](const KeptProcess&) {
    entered = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    returned = true;
  });
  ASSERT_TRUE(keeper_->spawn(spec("one", {"/usr/bin/true"})));
  ASSERT_TRUE(eventually([&] { return entered.load(); }));
  keeper_->on_exit({});
  EXPECT_TRUE(returned);
  // The exit of another one waits for who asks next.
  const auto pid = keeper_->spawn(spec("two", {"/usr/bin/true"}));
  ASSERT_TRUE(pid);
  ExitLog exits;
  exits.watch(*keeper_);
  EXPECT_EQ(exits.wait(*pid), 0);
}

TEST_F(KeeperLife, SameIdAndRoleTwiceIsRefusedWhileTheFirstLives) {
  const auto first = keeper_->spawn(sleeper("a"));
  ASSERT_TRUE(first);
  auto again = sleeper("a");
  again.root += "-2";
  EXPECT_EQ(keeper_->spawn(again).error().code, Code::exists);
  again.role = "another";
  const auto other = keeper_->spawn(again);
  EXPECT_TRUE(other);
}

TEST_F(KeeperLife, KilledKeeperTakesItsProcessesWithIt) {
  const auto pid = keeper_->spawn(sleeper("a"));
  ASSERT_TRUE(pid);
  std::atomic<bool> lost = false;
  keeper_->on_lost([&] { lost = true; });
  ASSERT_EQ(::kill(keeper_pid_, SIGKILL), 0);
  EXPECT_TRUE(eventually([&] { return lost.load(); }));
  EXPECT_TRUE(eventually([&] { return !is_running(*pid); }));
  EXPECT_EQ(keeper_->list().error().code, Code::unavailable);
  // The stale socket does not hinder the next one.
  keeper_.reset();
  connect();
  EXPECT_TRUE(keeper_->started_now());
  EXPECT_TRUE(keeper_->list()->empty());
}

TEST_F(KeeperLife, SignalsOfATerminalDoNotEndIt) {
  for (const int signal : {SIGHUP, SIGINT, SIGPIPE, SIGQUIT}) {
    ASSERT_EQ(::kill(keeper_pid_, signal), 0);
  }
  EXPECT_TRUE(keeper_->list());
}

TEST_F(KeeperLife, SigtermEndsItInGoodOrder) {
  const auto pid = keeper_->spawn(sleeper("a"));
  ASSERT_TRUE(pid);
  std::atomic<bool> lost = false;
  keeper_->on_lost([&] { lost = true; });
  ASSERT_EQ(::kill(keeper_pid_, SIGTERM), 0);
  EXPECT_TRUE(await_keeper_end(pidfd_.get(), 30'000));
  EXPECT_TRUE(eventually([&] { return lost.load(); }));
  EXPECT_FALSE(is_running(*pid));
  keeper_.reset();
}

TEST_F(KeeperLife, ShutDownLeavesNothing) {
  const auto pid = keeper_->spawn(sleeper("a"));
  ASSERT_TRUE(pid);
  std::atomic<bool> lost = false;
  keeper_->on_lost([&] { lost = true; });
  ASSERT_TRUE(keeper_->shut_down());
  // Not even a zombie of either.
  EXPECT_FALSE(std::filesystem::exists("/proc/" + std::to_string(*pid)));
  EXPECT_FALSE(std::filesystem::exists("/proc/" + std::to_string(keeper_pid_)));
  EXPECT_FALSE(std::filesystem::exists(run_dir_ + "/keeper.sock"));
  EXPECT_FALSE(std::filesystem::exists(run_dir_ + "/root-a"));
  EXPECT_THAT(read_file("/proc/self/mountinfo").value(),
              testing::Not(testing::HasSubstr(run_dir_)));
  keeper_.reset();
  EXPECT_FALSE(lost) << "an end that was asked for is no loss";
}

TEST_F(KeeperLife, TwoHundredSpawnsLeakNothing) {
  ASSERT_TRUE(keeper_->list());
  const size_t before = descriptors_of_keeper();
  for (int i = 0; i < 200; ++i) {
    const auto pid = keeper_->spawn(spec("vm" + std::to_string(i), {"/usr/bin/true"}));
    ASSERT_TRUE(pid) << pid.error().message;
    ASSERT_EQ(exits_.wait(*pid), 0);
    keeper_->forget(*pid);
  }
  EXPECT_TRUE(keeper_->list()->empty());
  EXPECT_EQ(descriptors_of_keeper(), before);
  for (const auto& entry : std::filesystem::directory_iterator(run_dir_)) {
    EXPECT_THAT(entry.path().string(), testing::Not(testing::HasSubstr("/root-")));
  }
}

TEST_F(KeeperLife, ThirtyTwoStartAtOnce) {
  std::vector<std::thread> threads;
  std::vector<pid_t> pids(32);
  const int64_t begin = monotonic_ns();
  for (size_t i = 0; i < pids.size(); ++i) {
    threads.emplace_back([&, i] {
      const auto pid = keeper_->spawn(sleeper("vm" + std::to_string(i)));
      EXPECT_TRUE(pid) << pid.error().message;
      if (pid) pids[i] = *pid;
    });
  }
  for (auto& thread : threads) thread.join();
  RecordProperty("milliseconds", static_cast<int>((monotonic_ns() - begin) / 1'000'000));
  std::printf("32 jails started in %.1f ms\n", static_cast<double>(monotonic_ns() - begin) / 1e6);
  for (const pid_t pid : pids) EXPECT_TRUE(is_running(pid));
  for (const pid_t pid : pids) EXPECT_TRUE(keeper_->kill(pid));
  EXPECT_TRUE(exits_.wait_for_count(pids.size()));
}

// A raw peer: what is not a request is refused, and the keeper serves on.
TEST_F(KeeperLife, NonsenseIsRefusedAndSurvived) {
  keeper_.reset();
  Fd socket;
  ASSERT_TRUE(eventually([&] {
    auto connected = connect_unix(run_dir_ + "/keeper.sock", SOCK_SEQPACKET);
    if (!connected) return false;
    socket = std::move(*connected);
    const auto welcome = receive_packet(socket.get());
    return welcome && !welcome->end && parse_reply(welcome->text)->number == kWelcome;
  }));
  const auto ask = [&](const std::string& text) {
    EXPECT_TRUE(send_packet(socket.get(), text));
    const auto packet = receive_packet(socket.get());
    const auto reply = packet ? parse_reply(packet->text) : Reply{};
    return reply && reply->error ? reply->error->code : Code{};
  };
  EXPECT_EQ(ask("nonsense"), Code::corrupt);
  EXPECT_EQ(ask(std::string(kMaxPacketBytes + 100, 'x')), Code::corrupt);
  EXPECT_EQ(ask(R"({"number":4,"operation":"list","pid":0})"), Code::wrong_state);
  EXPECT_EQ(ask(R"({"number":5,"operation":"hello","version":77})"), Code::wrong_state);
  socket.reset();
  connect();
  EXPECT_FALSE(keeper_->started_now());
}

TEST_F(KeeperLife, DaemonsThatRaceGetOneKeeper) {
  ASSERT_TRUE(keeper_->shut_down());
  keeper_.reset();
  std::atomic<int> connected = 0;
  std::atomic<int> refused = 0;
  std::vector<std::unique_ptr<Keeper>> keepers(4);
  std::vector<std::thread> threads;
  for (auto& keeper : keepers) {
    threads.emplace_back([&] {
      auto result = Keeper::connect(options());
      if (result) keeper = std::move(*result);
      ++(result ? connected : refused);
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(connected, 1);
  EXPECT_EQ(refused, 3);
  for (auto& keeper : keepers) {
    if (keeper) keeper_ = std::move(keeper);
  }
}

}  // namespace
}  // namespace snow
