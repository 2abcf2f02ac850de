// What the keeper's tests share: a run folder of their own, a keeper on it, and no trace of either
// afterwards, also when an assertion failed.
#pragma once

#include <dirent.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/fd.h"
#include "base/file.h"
#include "keeper/client.h"
#include "keeper/connect.h"

namespace snow {

// Waits, generously, until something holds.
inline bool eventually(const std::function<bool()>& holds, int seconds = 30) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

inline bool is_running(pid_t pid) {
  const auto stat = read_file("/proc/" + std::to_string(pid) + "/stat");
  if (!stat) return false;
  const char state = stat->at(stat->rfind(')') + 2);
  return state != 'Z' && state != 'X';
}

// The exits that a Keeper reports.
class ExitLog {
 public:
  void watch(Keeper& keeper) {
    keeper.on_exit([this](const KeptProcess& process) {
      const std::lock_guard lock(mutex_);
      seen_[process.pid] = process;
      ++count_;
      changed_.notify_all();
    });
  }
  // waitpid's status, or -1 if none came.
  int wait(pid_t pid) {
    std::unique_lock lock(mutex_);
    const bool came =
        changed_.wait_for(lock, std::chrono::seconds(60), [&] { return seen_.count(pid) != 0; });
    return came ? seen_[pid].status : -1;
  }
  bool wait_for_count(size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), [&] { return count_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<pid_t, KeptProcess> seen_;
  size_t count_ = 0;
};

class KeeperTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "the keeper makes namespaces and users: needs root";
    char name[] = "/tmp/snow-keeper-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    run_dir_ = name;
    ASSERT_EQ(::chmod(name, 0711), 0);  // a VM's user passes through to what is bound
    connect();
  }

  void TearDown() override {
    if (run_dir_.empty()) return;
    if (!keeper_ && pidfd_ && await_keeper_end(pidfd_.get(), 0)) {
      remove_all(run_dir_);
      return;
    }
    if (!keeper_) {
      if (auto again = Keeper::connect(options())) keeper_ = std::move(*again);
    }
    // A keeper that does not end in good order is ended otherwise; its processes die with it.
    if ((!keeper_ || !keeper_->shut_down()) && pidfd_) {
      ::kill(keeper_pid_, SIGKILL);
      await_keeper_end(pidfd_.get(), 10'000);
    }
    keeper_.reset();
    remove_all(run_dir_);
  }

  [[nodiscard]] Keeper::Options options() const {
    const char* program = std::getenv("SNOW_KEEPER");
    return {run_dir_, program != nullptr ? program : SNOW_KEEPER_PROGRAM};
  }

  void connect() {
    auto connected = Keeper::connect(options());
    ASSERT_TRUE(connected) << connected.error().message << "\n"
                           << read_file(run_dir_ + "/keeper.log").value_or("");
    keeper_ = std::move(*connected);
    keeper_pid_ = find_keeper();
    ASSERT_GT(keeper_pid_, 0);
    pidfd_ = open_pidfd(keeper_pid_);
    exits_.watch(*keeper_);
  }

  // The keeper is the process whose command line ends with our run folder.
  pid_t find_keeper() const {
    DIR* const proc = ::opendir("/proc");
    pid_t found = 0;
    while (const dirent* entry = ::readdir(proc)) {
      const pid_t pid = std::atoi(entry->d_name);
      if (pid <= 0) continue;
      const auto line = read_file("/proc/" + std::to_string(pid) + "/cmdline").value_or("");
      const std::string wanted = std::string(1, '\0') + run_dir_ + std::string(1, '\0');
      if (line.size() > wanted.size() && line.ends_with(wanted)) found = pid;
    }
    ::closedir(proc);
    return found;
  }

  [[nodiscard]] SpawnSpec spec(const std::string& id, std::vector<std::string> argv) const {
    SpawnSpec made;
    made.id = id;
    made.role = "test";
    made.argv = std::move(argv);
    made.root = run_dir_ + "/root-" + id;
    made.uid = 71234;
    made.log_path = run_dir_ + "/" + id + ".log";
    return made;
  }
  [[nodiscard]] SpawnSpec shell(const std::string& id, const std::string& script) const {
    return spec(id, {"/bin/sh", "-c", script});
  }
  [[nodiscard]] std::string log_of(const std::string& id) const {
    return read_file(run_dir_ + "/" + id + ".log").value_or("(no log)");
  }

  // Runs a script in a jail to its end and returns what it printed.
  std::string output_of(const SpawnSpec& spawned, int expected_status = 0) {
    const auto pid = keeper_->spawn(spawned);
    EXPECT_TRUE(pid) << pid.error().message;
    if (!pid) return "";
    EXPECT_EQ(exits_.wait(*pid), expected_status) << log_of(spawned.id);
    keeper_->forget(*pid);
    return log_of(spawned.id);
  }

  std::string run_dir_;
  ExitLog exits_;
  std::unique_ptr<Keeper> keeper_;
  pid_t keeper_pid_ = 0;
  Fd pidfd_;
};

}  // namespace snow
