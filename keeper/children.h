// The keeper's processes: started in their jails, reaped, held, listed.
//
// Single-threaded: everything, ptrace included, happens on the keeper's one thread, which is the
// parent and the tracer. Nothing here waits for a child: spawn() returns at once, and the outcome
// is told through the callback when the child's report pipe closes (exec worked) or says why not.
//
// A held process (hold) is traced only to make the kernel stop it at the start of its exit
// (PTRACE_EVENT_EXIT), when its memory is still whole; there it stays, however it was killed, until
// let_go or kill. Everything else that stops a traced process is passed on to it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "keeper/cgroup.h"
#include "keeper/client.h"

namespace snow {

class Children {
 public:
  struct Callbacks {
    std::function<void(uint64_t request, Result<pid_t>)> spawned;
    std::function<void(const KeptProcess&)> exited;  // never for one whose spawn failed
  };
  Children(const std::string& run_dir, Callbacks callbacks);

  // Begins to start a process. An error: nothing was begun. `request` comes back in `spawned`.
  Result<void> spawn(uint64_t request, const SpawnSpec& spec);
  Result<void> kill(pid_t pid);
  Result<void> hold(pid_t pid);
  Result<void> let_go(pid_t pid);
  void forget(pid_t pid);

  // Those with a pid above `after`, by pid, at most `limit`; none whose exec is still to come.
  [[nodiscard]] std::vector<KeptProcess> list(pid_t after, size_t limit) const;
  [[nodiscard]] bool any_left() const;  // some process is not reaped yet
  void kill_all();

  // For the poll loop: the report pipes to watch, what to do when one is readable, when a SIGCHLD
  // came, and now and then (ends starts that take too long, for example on a dead FUSE mount).
  [[nodiscard]] std::vector<int> report_fds() const;
  void handle_report(int fd);
  void reap();
  void tick();

 private:
  struct Child {
    KeptProcess process;
    uint64_t request = 0;
    Fd report;                // valid: exec is still to come
    std::string said;         // what came through it
    int64_t deadline_ns = 0;  // of the exec
    bool too_late = false;
    bool traced = false;  // held, or about to be let go
    bool let_go = false;  // detach at the next stop
    bool stopped_at_exit = false;
    std::string root;
    std::string cgroup;
  };
  using Table = std::map<pid_t, Child>;

  Result<Table::iterator> find_running(pid_t pid);
  void finish_start(Child& child);  // its pipe has closed
  void handle_stop(Child& child, int status);
  void handle_end(Table::iterator at, int status);
  void detach(Child& child, int signal);
  void drop_oldest_exited();

  Callbacks callbacks_;
  Cgroups cgroups_;
  uint64_t next_group_ = 1;
  Table table_;
};

}  // namespace snow
