// Stops and starts all user processes with the cgroup v2 freezer: every top-level cgroup but the
// agent's own. With systemd the agent runs in a slice of its own (snow.slice); without, it moves
// every other process into the cgroup snow-guest when it starts and stays in the root, which cannot
// be frozen. Programs that the agent starts for the host go into snow-exec. Single-threaded.
#pragma once

#include <string>
#include <vector>

#include "guest/agent/util.h"

namespace snow::guest {

// Most kernel threads can be moved into a cgroup, but none freezes: with one in it, a cgroup never
// counts as frozen. So they stay where they are.
bool is_kernel_thread(const std::string& pid);

class Freezer {
 public:
  // `root`: empty: /sys/fs/cgroup, mounted if nothing is; a directory: its child cgroups are what
  // is frozen, and no process is moved; "none": no freezer.
  explicit Freezer(const std::string& root);

  struct Outcome {
    bool held = false;
    std::string why;       // if not held
    int64_t since_us = 0;  // monotonic_us() when the first was told to stand still
  };
  // Waits at most `timeout_ms` until all stand still; what has not stopped by then is named. Sleeps
  // between two looks, so that they get a CPU.
  Outcome freeze(int timeout_ms);
  void thaw();
  [[nodiscard]] bool available() const { return problem_.empty(); }
  // Its cgroup.procs, for a child to write "0" to; -1 without a freezer.
  [[nodiscard]] int exec_procs_fd() const { return exec_procs_.get(); }

 private:
  void find_root();
  void move_processes();

  std::string root_;
  std::string own_;      // name of the agent's own top-level cgroup
  std::string problem_;  // why there is no freezer
  Fd exec_procs_;
  // A top-level cgroup. Its files stay open: after a thaw the way to them would be translated anew.
  struct Group {
    std::string name;
    Fd freeze;  // cgroup.freeze
    Fd events;  // cgroup.events
    bool open(const std::string& folder);
    [[nodiscard]] bool set(bool frozen) const;
    [[nodiscard]] bool is_frozen() const;
  };
  void find_groups();
  std::vector<Group> groups_;  // all but own_, as of the last freeze()
};

}  // namespace snow::guest
