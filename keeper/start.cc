#include "keeper/start.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <vector>

#include "base/file.h"
#include "keeper/cgroup.h"
#include "keeper/jail.h"

namespace snow {
namespace {

constexpr int kFailedStart = 125;

// As after a login: no handler, nothing ignored, nothing blocked. By the system call, since the C
// library's function leaves out the two signals that it keeps for itself.
void reset_signals() {
  const uint64_t fresh[4] = {};  // the kernel's struct sigaction: SIG_DFL, no flags, no mask
  for (int signal = 1; signal < NSIG; ++signal) {
    (void)::syscall(SYS_rt_sigaction, signal, fresh, nullptr, sizeof(uint64_t));
  }
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

// The keeper is protected from the OOM killer; a VM is not.
void reset_oom_score() {
  const Fd fd(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  if (fd) (void)!::write(fd.get(), "0", 1);
}

Result<void> become(const SpawnSpec& spec, const std::string& cgroup, int log, pid_t keeper) {
  reset_oom_score();
  enter_cgroup(cgroup);
  ::setsid();
  const Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null || ::dup2(null.get(), 0) < 0 || ::dup2(log, 1) < 0 || ::dup2(log, 2) < 0) {
    return fail_errno(Code::host_failed, "cannot set up its input and output");
  }
  if (::syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC) < 0) {
    return fail_errno(Code::host_failed, "close_range");
  }
  SNOW_TRY(enter_jail(spec, keeper));
  reset_signals();
  std::vector<char*> argv;
  for (const std::string& word : spec.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  // One heap for all threads: one of its own grows page by page, a system call for each, while a
  // vCPU translates the guest's code anew after a thaw.
  const char* const environment[] = {"PATH=/usr/bin:/bin", "HOME=/", "LANG=C.UTF-8",
                                     "MALLOC_ARENA_MAX=1", nullptr};
  ::execve(argv[0], argv.data(), const_cast<char* const*>(environment));
  const Code code = errno == ENOENT ? Code::not_found : Code::host_failed;
  return fail_errno(code, "exec of '{}' in the jail", spec.argv[0]);
}

[[noreturn]] void run_child(const SpawnSpec& spec, const std::string& cgroup, int log, int report,
                            pid_t keeper) {
  const auto result = become(spec, cgroup, log, keeper);
  const std::string text =
      std::to_string(static_cast<int>(result.error().code)) + " " + result.error().message;
  (void)!::write(report, text.data(), std::min<size_t>(text.size(), 4000));
  ::_exit(kFailedStart);
}

}  // namespace

Result<Started> start_in_jail(const SpawnSpec& spec, const std::string& cgroup) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) < 0) return fail_errno(Code::host_failed, "spawn: pipe");
  Fd report(ends[0]);
  const Fd child_end(ends[1]);
  if (::fcntl(report.get(), F_SETFL, O_NONBLOCK) < 0) {
    return fail_errno(Code::host_failed, "spawn: pipe");
  }
  const Fd log(
      ::open(spec.log_path.c_str(),
             O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, 0640));
  if (!log) {
    return fail_errno(Code::host_failed, "spawn of '{}': cannot open its log '{}'", spec.id,
                      spec.log_path);
  }
  SNOW_TRY(make_folders(spec.root, 0700));
  const pid_t keeper = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    const auto error = fail_errno(Code::host_failed, "spawn of '{}': fork", spec.id);
    ::rmdir(spec.root.c_str());
    return error;
  }
  if (pid == 0) run_child(spec, cgroup, log.get(), child_end.get(), keeper);
  return Started{pid, std::move(report)};
}

Error parse_start_report(const std::string& id, const std::string& report) {
  char* end = nullptr;
  const long code = std::strtol(report.c_str(), &end, 10);
  const bool known =
      code >= static_cast<long>(Code::internal) && code <= static_cast<long>(Code::spent);
  return {known ? static_cast<Code>(code) : Code::internal,
          "spawn of '" + id + "': " + (*end == ' ' ? end + 1 : end)};
}

}  // namespace snow
