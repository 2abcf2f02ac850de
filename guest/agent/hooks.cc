#include "guest/agent/hooks.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>
#include <vector>

#include "guest/agent/util.h"

namespace snow::guest {

namespace {

// Exit status as of waitpid, or -1 if it had to be killed.
int wait_for(pid_t pid) {
  const int64_t deadline = monotonic_us() + int64_t{kHookTimeoutMs} * 1000;
  sigset_t children;
  sigemptyset(&children);
  sigaddset(&children, SIGCHLD);
  while (true) {
    int status = 0;
    const pid_t got = waitpid(pid, &status, WNOHANG);
    if (got == pid) return status;
    if (got < 0 && errno != EINTR) return 0;
    if (monotonic_us() > deadline) {
      kill(-pid, SIGKILL);
      waitpid(pid, &status, 0);
      return -1;
    }
    // Another child's SIGCHLD may take the place of this one's: never wait for long.
    const timespec slice{0, 20'000'000};
    sigtimedwait(&children, nullptr, &slice);
  }
}

pid_t start(const std::string& path, const std::string& name, std::vector<char*>& environment) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  setsid();
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  const int null = open("/dev/null", O_RDONLY);
  dup2(null, 0);
  close_range(3, ~0u, 0);
  char* arguments[] = {const_cast<char*>(name.c_str()), nullptr};
  execve(path.c_str(), arguments, environment.data());
  _exit(errno == ENOENT ? 127 : 126);
}

}  // namespace

std::string run_hooks(const std::string& folder,
                      const std::map<std::string, std::string>& environment) {
  const std::vector<std::string> names = list_directory(folder);
  std::vector<std::string> lines;
  for (const auto& [key, value] : environment) lines.push_back(key + "=" + value);
  std::vector<char*> pointers;
  for (std::string& line : lines) pointers.push_back(line.data());
  pointers.push_back(nullptr);
  bool any = false;
  std::string failed;
  for (const std::string& name : names) {
    const std::string path = folder + "/" + name;
    if (access(path.c_str(), X_OK) != 0) continue;
    any = true;
    const pid_t pid = start(path, name, pointers);
    const int status = pid < 0 ? 0 : wait_for(pid);
    std::string what;
    if (pid < 0) {
      what = error_text(errno);
    } else if (status == -1) {
      what = "killed after " + std::to_string(kHookTimeoutMs / 1000) + " s";
    } else if (WIFSIGNALED(status)) {
      what = "signal " + std::to_string(WTERMSIG(status));
    } else if (WEXITSTATUS(status) != 0) {
      what = "exit " + std::to_string(WEXITSTATUS(status));
    }
    if (!what.empty()) failed += (failed.empty() ? "" : "; ") + name + ": " + what;
  }
  if (!failed.empty()) return failed.substr(0, 4096);
  return any ? "ok" : "none";
}

}  // namespace snow::guest
