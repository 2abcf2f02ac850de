#include "guest/agent/freezer.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

namespace snow::guest {

namespace {

bool is_cgroup2(const char* path) {
  struct statfs status {};
  return statfs(path, &status) == 0 && status.f_type == CGROUP2_SUPER_MAGIC;
}

// The first component of this process's cgroup v2 path; "" in the root.
std::string own_top_level_cgroup() {
  const auto text = read_small_file("/proc/self/cgroup");
  if (!text) return "";
  for (const std::string& line : split(*text, '\n')) {
    if (line.starts_with("0::/")) return split(std::string_view(line).substr(4), '/')[0];
  }
  return "";
}

}  // namespace

bool is_kernel_thread(const std::string& pid) {
  constexpr unsigned long kKernelThread = 0x00200000;  // PF_KTHREAD of linux/sched.h
  const std::string text = read_small_file("/proc/" + pid + "/stat").value_or("");
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return false;
  const auto parts = split(std::string_view(text).substr(name_end + 1), ' ');
  // "", state, parent, group, session, terminal, its group, flags
  return parts.size() > 7 && (strtoul(parts[7].c_str(), nullptr, 10) & kKernelThread) != 0;
}

Freezer::Freezer(const std::string& root) {
  if (root == "none") {
    problem_ = "switched off";
    return;
  }
  root_ = root;
  if (root.empty()) find_root();
  if (!problem_.empty()) return;
  if (access((root_ + "/cgroup.procs").c_str(), W_OK) != 0) {
    problem_ = root_ + ": " + error_text(errno);
    return;
  }
  if (root.empty()) {
    own_ = own_top_level_cgroup();
    // An agent that is started again by a script finds itself among those that its predecessor
    // moved.
    if ((own_ == "snow-guest" || own_ == "snow-exec") &&
        write_small_file(root_ + "/cgroup.procs", "0") == 0) {
      own_.clear();
    }
    if (own_.empty()) move_processes();
  }
  mkdir((root_ + "/snow-exec").c_str(), 0755);
  exec_procs_ = Fd(open((root_ + "/snow-exec/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  for (const std::string& name : list_directory(root_)) frozen_.push_back(name);
  thaw();  // what an agent that was killed may have left frozen
}

void Freezer::find_root() {
  constexpr const char* kUsual = "/sys/fs/cgroup";
  constexpr const char* kHybrid = "/sys/fs/cgroup/unified";
  struct statfs status {};
  if (statfs(kUsual, &status) == 0 && status.f_type == SYSFS_MAGIC) {
    if (mount("cgroup2", kUsual, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0) {
      problem_ = std::string("cgroup2 cannot be mounted on ") + kUsual + ": " + error_text(errno);
      return;
    }
  }
  if (is_cgroup2(kUsual)) {
    root_ = kUsual;
  } else if (is_cgroup2(kHybrid)) {
    root_ = kHybrid;
  } else {
    problem_ = "no cgroup v2 on /sys/fs/cgroup";
  }
}

// Twice, for what was forked meanwhile.
void Freezer::move_processes() {
  const std::string group = root_ + "/snow-guest";
  if (mkdir(group.c_str(), 0755) != 0 && errno != EEXIST) {
    problem_ = group + ": " + error_text(errno);
    return;
  }
  const Fd target(open((group + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  const std::string self = std::to_string(getpid());
  for (int pass = 0; pass < 2; ++pass) {
    const auto processes = read_small_file(root_ + "/cgroup.procs");
    if (!processes) return;
    for (const std::string& pid : split(*processes, '\n')) {
      if (pid.empty() || pid == self || is_kernel_thread(pid)) continue;
      (void)!write(target.get(), pid.data(), pid.size());
    }
  }
}

Freezer::Outcome Freezer::freeze(int timeout_ms) {
  if (!available()) return {false, problem_};
  const int64_t start = monotonic_us();
  frozen_.clear();
  std::vector<Fd> waiting;  // cgroup.events of those not frozen yet
  std::vector<std::string> names;
  for (const std::string& name : list_directory(root_)) {
    if (name == own_) continue;
    const std::string group = root_ + "/" + name;
    // Plain files of the root group (cgroup.procs, ...) have no such child: ENOTDIR.
    if (write_small_file(group + "/cgroup.freeze", "1") != 0) continue;
    frozen_.push_back(name);
    names.push_back(name);
    waiting.emplace_back(open((group + "/cgroup.events").c_str(), O_RDONLY | O_CLOEXEC));
  }
  for (int round = 0; !waiting.empty(); ++round) {
    while (!waiting.empty()) {
      char text[128];
      const ssize_t got = pread(waiting.back().get(), text, sizeof text, 0);
      if (got > 0 && std::string_view(text, static_cast<size_t>(got)).find("frozen 1") ==
                         std::string_view::npos) {
        break;
      }
      waiting.pop_back();
      names.pop_back();
    }
    if (waiting.empty()) break;
    if (monotonic_us() - start > int64_t{timeout_ms} * 1000) {
      return {false, "still running: " + names.back()};
    }
    if (round < 50) {
      sched_yield();
    } else {
      usleep(1000);
    }
  }
  return {true, ""};
}

void Freezer::thaw() {
  for (const std::string& name : frozen_) {
    write_small_file(root_ + "/" + name + "/cgroup.freeze", "0");
  }
  frozen_.clear();
}

}  // namespace snow::guest
