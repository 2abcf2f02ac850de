// The daemon's end of the keeper: one small process per host that holds what must outlive the
// daemon: /dev/fuse, the table of unanswered requests, and the QEMU processes (it is their parent,
// puts each into its jail and reaps it). keeper/protocol.h has the messages.
//
// Thread-safe. The keeper itself killed is the one thing that VMs do not survive: QEMUs get SIGKILL
// with it (PR_SET_PDEATHSIG) and the next daemon says so and cleans up.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace snow {

// A QEMU's jail: its own mount, IPC, UTS (and, unless share_network, network) namespace with a
// read-only root made of the host's /usr, /lib*, /bin, /etc/ld.so.cache and what `binds` adds; its
// own user; its own cgroup where cgroup v2 can be written.
struct Bind {
  std::string source;  // on the host: a file or folder; no symbolic link anywhere in its path
  std::string target;  // absolute, in the jail; made by the keeper
  bool writable = false;
};

struct SpawnSpec {
  std::string id;                 // 1 to 64 of a-z A-Z 0-9 . _ - (its host name, too); unique among
                                  // live processes together with `role`, else Code::exists
  std::string role;               // free text, shown in listings: "boot", "shell"
  std::vector<std::string> argv;  // argv[0] absolute, as seen in the jail
  std::vector<Bind> binds;
  std::string root;            // host folder on which the jail's root is built; made and removed
  uid_t uid = 0;               // and gid of the same number; never 0
  bool share_network = false;  // --net user
  bool kvm = false;            // /dev/kvm in the jail, readable by uid
  // madvise(MADV_HUGEPAGE) has no effect. QEMU gives this advice for its guest's memory, and on a
  // file it makes the kernel read 2 MiB for each page that is missing.
  bool no_huge_pages = false;
  uint64_t memory_limit_bytes = 0;  // cgroup memory.max; 0: none
  std::string log_path;             // standard output and error are appended to this host file
};

struct KeptProcess {
  pid_t pid = 0;
  std::string id;
  std::string role;
  bool running = true;
  int status = 0;  // waitpid's, when not running
};

class Keeper {
 public:
  struct Options {
    std::string run_dir;  // keeper.sock lies here
    std::string program;  // path of the snow-keeper binary
  };
  // Connects to the keeper of run_dir, or starts one (in its own session, detached from this
  // process). One daemon at a time: a second one gets Code::exists.
  static Result<std::unique_ptr<Keeper>> connect(const Options& options);
  virtual ~Keeper() = default;

  [[nodiscard]] virtual bool started_now() const = 0;  // false: it was there before us
  [[nodiscard]] virtual pid_t pid() const = 0;

  // The keeper's copies. fuse: an invalid Fd if none was given yet.
  virtual Result<Fd> fuse_fd() = 0;
  virtual Result<void> keep_fuse_fd(int fd) = 0;
  virtual Result<Fd> table_fd() = 0;  // a memfd of lazyfs_table_bytes(), zeroed when new

  // Starts a process in its jail; returns when its exec has worked. Calls of several threads run
  // beside each other. An error (uid 0, a bind whose source is missing or reached through a
  // symbolic link, exec failed) names the step; nothing is left behind. on_exit may report a
  // process that ends at once before this returns.
  virtual Result<pid_t> spawn(const SpawnSpec& spec) = 0;
  // SIGKILL, to a held process too; the exit is reported as any other. Fine if it has ended
  // already.
  virtual Result<void> kill(pid_t pid) = 0;
  virtual Result<std::vector<KeptProcess>> list() = 0;
  virtual void forget(pid_t pid) = 0;  // an exited process leaves the listing

  // The frozen parent: from now on the process's memory stays readable (process_vm_readv, by pid)
  // even when something kills it, until let_go(pid) or kill(pid). By PTRACE_O_TRACEEXIT. The
  // process must be one of this keeper's. A held process that was killed is listed as running and
  // its exit reported only after let_go or kill. Holding lasts over a change of the daemon.
  virtual Result<void> hold(pid_t pid) = 0;
  virtual Result<void> let_go(pid_t pid) = 0;

  // Called on a thread of this object for each process that ends, and again to each daemon that
  // connects for exits that nobody has forgotten yet. Set before the first spawn; exits that came
  // earlier wait for it. It may call this object, not destroy it. {}: on return none runs any more.
  virtual void on_exit(std::function<void(const KeptProcess&)> callback) = 0;
  // Called once when the keeper is lost, and with it all VMs; not after shut_down(). {}: as above.
  virtual void on_lost(std::function<void()> callback) = 0;

  // The keeper ends itself, killing what it still has; returns when it has ended. For an orderly
  // stop of the whole host. Destroying this object only disconnects.
  virtual Result<void> shut_down() = 0;
};

}  // namespace snow
