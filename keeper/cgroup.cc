#include "keeper/cgroup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"

namespace snow {
namespace {

// Control files take one write each; write_file() would put a new file in their place.
bool put(const std::string& path, const std::string& text) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  return fd && ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

std::string cgroup2_mount() {
  const auto mounts = read_file("/proc/self/mountinfo");
  if (!mounts) return "";
  std::istringstream lines(*mounts);
  for (std::string line; std::getline(lines, line);) {
    if (line.find(" - cgroup2 ") == std::string::npos) continue;
    std::istringstream words(line);
    std::string word;
    for (int i = 0; i < 5; ++i) words >> word;  // the fifth is the mount point
    return word;
  }
  return "";
}

// FNV-1a: a stable short name for a run_dir.
std::string hash_of(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

bool contains_word(const std::string& text, const std::string& wanted) {
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (word == wanted) return true;
  }
  return false;
}

}  // namespace

Cgroups::Cgroups(const std::string& run_dir) {
  const std::string mount = cgroup2_mount();
  if (mount.empty()) {
    log_warn("cgroup: no cgroup v2 mount; VMs run without a group of their own");
    return;
  }
  const std::string base = mount + "/thundersnow-" + hash_of(run_dir);
  if (::mkdir(base.c_str(), 0755) < 0 && errno != EEXIST) {
    log_warn("cgroup: {} cannot be made ({}); VMs run without a group of their own", base,
             strerror(errno));
    return;
  }
  base_ = base;
  put(mount + "/cgroup.subtree_control", "+memory");
  put(base_ + "/cgroup.subtree_control", "+memory");
  has_memory_ = contains_word(read_file(base_ + "/cgroup.subtree_control").value_or(""), "memory");
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(base_, ignored)) {
    if (entry.is_directory(ignored)) ::rmdir(entry.path().c_str());
  }
  log_info("cgroup: {}, {}", base_,
           has_memory_ ? "with the memory controller" : "without the memory controller");
}

Cgroups::~Cgroups() {
  tidy();
  if (!base_.empty()) ::rmdir(base_.c_str());
}

std::string Cgroups::make(const std::string& name, uint64_t memory_limit_bytes) {
  if (base_.empty()) return "";
  const std::string group = base_ + "/" + name;
  if (::mkdir(group.c_str(), 0755) < 0) {
    log_warn("cgroup: {} cannot be made: {}", group, strerror(errno));
    return "";
  }
  if (memory_limit_bytes > 0 && has_memory_) {
    put(group + "/memory.oom.group", "1");
    if (!put(group + "/memory.max", std::to_string(memory_limit_bytes))) {
      log_warn("cgroup: {}: memory.max not set: {}", group, strerror(errno));
    }
  } else if (memory_limit_bytes > 0 && !said_no_memory_) {
    said_no_memory_ = true;
    log_warn("cgroup: no memory controller here; memory limits of VMs are not enforced");
  }
  return group;
}

void Cgroups::remove(const std::string& group) {
  if (group.empty()) return;
  put(group + "/cgroup.kill", "1");
  to_remove_.push_back(group);
  tidy();
}

void Cgroups::tidy() {
  std::erase_if(to_remove_, [](const std::string& group) {
    return ::rmdir(group.c_str()) == 0 || errno == ENOENT;
  });
}

void enter_cgroup(const std::string& group) {
  if (!group.empty()) put(group + "/cgroup.procs", "0");
}

}  // namespace snow
