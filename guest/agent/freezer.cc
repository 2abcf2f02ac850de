#include "guest/agent/freezer.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
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
  find_groups();
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

bool Freezer::Group::open(const std::string& folder) {
  freeze = Fd(::open((folder + "/cgroup.freeze").c_str(), O_WRONLY | O_CLOEXEC));
  events = Fd(::open((folder + "/cgroup.events").c_str(), O_RDONLY | O_CLOEXEC));
  return freeze && events;
}

bool Freezer::Group::set(bool frozen) const {
  return write(freeze.get(), frozen ? "1" : "0", 1) == 1;
}

bool Freezer::Group::is_frozen() const {
  char text[128];
  const ssize_t got = pread(events.get(), text, sizeof text, 0);
  // One that is gone has nothing that runs.
  return got <= 0 || std::string_view(text, static_cast<size_t>(got)).find("frozen 1") !=
                         std::string_view::npos;
}

// Those that are still there keep their open files.
void Freezer::find_groups() {
  std::vector<Group> found;
  for (std::string& name : list_directory(root_)) {
    if (name == own_) continue;
    const auto known = std::find_if(groups_.begin(), groups_.end(),
                                    [&](const Group& group) { return group.name == name; });
    if (known != groups_.end()) {
      found.push_back(std::move(*known));
      continue;
    }
    Group group;
    // Plain files of the root group (cgroup.procs, ...) have no such child: ENOTDIR.
    if (group.open(root_ + "/" + name)) {
      group.name = std::move(name);
      found.push_back(std::move(group));
    }
  }
  groups_ = std::move(found);
}

Freezer::Outcome Freezer::freeze(int timeout_ms) {
  if (!available()) return {false, problem_, monotonic_us()};
  find_groups();
  const int64_t start = monotonic_us();
  std::vector<const Group*> waiting;
  for (Group& group : groups_) {
    // Removed and made again since: the open files are the old one's.
    if (group.set(true) || (group.open(root_ + "/" + group.name) && group.set(true))) {
      waiting.push_back(&group);
    }
  }
  for (int round = 0;; ++round) {
    while (!waiting.empty() && waiting.back()->is_frozen()) waiting.pop_back();
    if (waiting.empty()) return {true, "", start};
    if (monotonic_us() - start > int64_t{timeout_ms} * 1000) {
      return {false, "still running: " + waiting.back()->name, start};
    }
    usleep(round < 20 ? 50 : 1000);
  }
}

void Freezer::thaw() {
  for (const Group& group : groups_) (void)group.set(false);
}

}  // namespace snow::guest
