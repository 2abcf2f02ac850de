// A cgroup (v2) per kept process, where the host lets us: a bound on its memory, and a way to find
// and end whatever it may leave behind. Best effort: without a writable hierarchy, or without the
// memory controller, processes run all the same and the log says once what is missing.
//
// Not thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace snow {

class Cgroups {
 public:
  // Makes <cgroup2 mount>/thundersnow-<hash of run_dir>; groups that an earlier keeper of the same
  // run_dir left empty are removed. The mount is looked up in /proc/self/mountinfo.
  explicit Cgroups(const std::string& run_dir);
  ~Cgroups();  // removes what is empty
  Cgroups(const Cgroups&) = delete;
  Cgroups& operator=(const Cgroups&) = delete;

  // The new group's folder, or "" if there is none to be had.
  std::string make(const std::string& name, uint64_t memory_limit_bytes);
  // Ends whatever is still in the group and removes it: now, or (the kernel may need a moment) at a
  // later call of tidy().
  void remove(const std::string& group);
  void tidy();

 private:
  std::string base_;  // "" if there is no writable hierarchy
  bool has_memory_ = false;
  bool said_no_memory_ = false;
  std::vector<std::string> to_remove_;
};

// For a freshly forked child: moves itself into the group. "" is no group.
void enter_cgroup(const std::string& group);

}  // namespace snow
