// Holding a process: killed or not, its memory can be read until it is let go.
#include <sys/uio.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>

#include "keeper/test_keeper.h"

namespace snow {
namespace {

// Started as a jailed process by this very test program (see main below): several threads, and a
// pattern in memory whose address it prints.
constexpr char kAddressIs[] = "the pattern is at 0x";
constexpr char kPattern[] = "a held process keeps its memory";

class Hold : public KeeperTest {
 protected:
  struct Target {
    pid_t pid = 0;
    uintptr_t address = 0;
  };

  Target start(const std::string& id) {
    auto made = spec(id, {"/self", "--be-held"});
    made.binds = {{std::filesystem::read_symlink("/proc/self/exe").string(), "/self", false}};
    const auto pid = keeper_->spawn(made);
    EXPECT_TRUE(pid) << pid.error().message;
    Target target{pid.value_or(0), 0};
    EXPECT_TRUE(eventually([&] {
      const std::string text = log_of(id);
      const size_t at = text.find(kAddressIs);
      if (at == std::string::npos || text.find('\n', at) == std::string::npos) return false;
      target.address = std::strtoull(text.c_str() + at + strlen(kAddressIs), nullptr, 16);
      return true;
    })) << log_of(id);
    return target;
  }

  static std::string read_memory(const Target& target) {
    char bytes[sizeof kPattern] = {};
    const iovec here{bytes, sizeof bytes};
    const iovec there{reinterpret_cast<void*>(target.address), sizeof bytes};
    if (::process_vm_readv(target.pid, &here, 1, &there, 1, 0) < 0) return strerror(errno);
    return bytes;
  }

  static char state_of(pid_t pid) {
    const auto stat = read_file("/proc/" + std::to_string(pid) + "/stat").value_or(") -");
    return stat.at(stat.rfind(')') + 2);
  }
  // The state alone does not tell: a signal on its way to a held process stops it for a moment,
  // too.
  [[nodiscard]] bool stops_at_exit(pid_t pid) const {
    const std::string wanted = "process " + std::to_string(pid) + " (";
    return eventually([&] {
      const std::string log = read_file(run_dir_ + "/keeper.log").value_or("");
      const size_t at = log.find(wanted);
      return at != std::string::npos && log.find("was ended while it is held", at) != log.npos;
    });
  }
};

TEST_F(Hold, MemoryOfAKilledProcessStaysUntilItIsLetGo) {
  const Target target = start("a");
  EXPECT_EQ(read_memory(target), kPattern);
  ASSERT_TRUE(keeper_->hold(target.pid));
  ASSERT_TRUE(keeper_->hold(target.pid));  // again is fine
  ASSERT_EQ(::kill(target.pid, SIGKILL), 0);
  ASSERT_TRUE(stops_at_exit(target.pid));
  EXPECT_EQ(read_memory(target), kPattern);
  // A second kill does not get through either.
  ASSERT_EQ(::kill(target.pid, SIGKILL), 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(read_memory(target), kPattern);
  const auto listed = keeper_->list();
  ASSERT_TRUE(listed && listed->size() == 1);
  EXPECT_TRUE(listed->at(0).running);
  ASSERT_TRUE(keeper_->let_go(target.pid));
  EXPECT_EQ(exits_.wait(target.pid), SIGKILL);
}

TEST_F(Hold, KillOfAHeldProcessEndsIt) {
  const Target target = start("a");
  ASSERT_TRUE(keeper_->hold(target.pid));
  ASSERT_TRUE(keeper_->kill(target.pid));
  EXPECT_EQ(exits_.wait(target.pid), SIGKILL);
}

TEST_F(Hold, KillEndsAProcessThatDiedWhileHeld) {
  const Target target = start("a");
  ASSERT_TRUE(keeper_->hold(target.pid));
  ASSERT_EQ(::kill(target.pid, SIGABRT), 0);  // a crash, as QEMU's assertions do
  ASSERT_TRUE(stops_at_exit(target.pid));
  EXPECT_EQ(read_memory(target), kPattern);
  ASSERT_TRUE(keeper_->kill(target.pid));
  EXPECT_EQ(exits_.wait(target.pid) & 0x7f, SIGABRT);
}

TEST_F(Hold, AHeldProcessRunsOnAsBefore) {
  const Target target = start("a");
  ASSERT_TRUE(keeper_->hold(target.pid));
  // It stops and goes on as it would without us, and its handler still gets its signal.
  ASSERT_EQ(::kill(target.pid, SIGSTOP), 0);
  EXPECT_TRUE(
      eventually([&] { return state_of(target.pid) == 't' || state_of(target.pid) == 'T'; }));
  ASSERT_EQ(::kill(target.pid, SIGCONT), 0);
  EXPECT_TRUE(eventually([&] { return state_of(target.pid) == 'S'; }));
  ASSERT_EQ(::kill(target.pid, SIGUSR1), 0);
  EXPECT_TRUE(eventually([&] { return log_of("a").find("got it") != std::string::npos; }));
  ASSERT_TRUE(keeper_->let_go(target.pid));
  ASSERT_EQ(::kill(target.pid, SIGKILL), 0);
  EXPECT_EQ(exits_.wait(target.pid), SIGKILL);
}

TEST_F(Hold, LetGoAndHeldAgain) {
  const Target target = start("a");
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(keeper_->hold(target.pid));
    ASSERT_TRUE(keeper_->let_go(target.pid));
  }
  ASSERT_TRUE(keeper_->hold(target.pid));
  ASSERT_EQ(::kill(target.pid, SIGKILL), 0);
  ASSERT_TRUE(stops_at_exit(target.pid));
  EXPECT_EQ(read_memory(target), kPattern);
  ASSERT_TRUE(keeper_->let_go(target.pid));
  EXPECT_EQ(exits_.wait(target.pid), SIGKILL);
}

TEST_F(Hold, TheNextDaemonFindsItHeld) {
  const Target target = start("a");
  ASSERT_TRUE(keeper_->hold(target.pid));
  keeper_.reset();
  ASSERT_EQ(::kill(target.pid, SIGKILL), 0);
  ASSERT_TRUE(stops_at_exit(target.pid));
  connect();
  EXPECT_EQ(read_memory(target), kPattern);
  ASSERT_TRUE(keeper_->let_go(target.pid));
  EXPECT_EQ(exits_.wait(target.pid), SIGKILL);
}

TEST_F(Hold, ShutDownEndsHeldProcessesToo) {
  const Target running = start("a");
  const Target dead = start("b");
  ASSERT_TRUE(keeper_->hold(running.pid));
  ASSERT_TRUE(keeper_->hold(dead.pid));
  ASSERT_EQ(::kill(dead.pid, SIGKILL), 0);
  ASSERT_TRUE(stops_at_exit(dead.pid));
  ASSERT_TRUE(keeper_->shut_down());
  EXPECT_FALSE(std::filesystem::exists("/proc/" + std::to_string(running.pid)));
  EXPECT_FALSE(std::filesystem::exists("/proc/" + std::to_string(dead.pid)));
  keeper_.reset();
}

TEST_F(Hold, OnlyTheKeepersOwnProcesses) {
  EXPECT_EQ(keeper_->hold(::getpid()).error().code, Code::not_found);
  EXPECT_EQ(keeper_->let_go(1).error().code, Code::not_found);
  EXPECT_EQ(keeper_->kill(::getpid()).error().code, Code::not_found);
}

int be_held() {
  static char pattern[sizeof kPattern];
  memcpy(pattern, kPattern, sizeof kPattern);
  ::signal(SIGUSR1, [](int) { (void)!::write(1, "got it\n", 7); });
  for (int i = 0; i < 3; ++i) {
    std::thread([] {
      for (;;) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }).detach();
  }
  std::printf("%s%zx\n", kAddressIs, reinterpret_cast<size_t>(&pattern[0]));
  std::fflush(stdout);
  for (;;) ::pause();
}

}  // namespace
}  // namespace snow

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--be-held") == 0) return snow::be_held();
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
