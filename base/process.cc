#include "base/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>

#include "base/fd.h"
#include "base/file.h"

extern char** environ;

namespace snow {
namespace {

// Appends what is readable to `text`; false at the end of the stream.
bool drain(int fd, std::string& text) {
  char buffer[16384];
  const ssize_t got = ::read(fd, buffer, sizeof buffer);
  if (got < 0) return errno == EINTR || errno == EAGAIN;
  text.append(buffer, static_cast<size_t>(got));
  return got > 0;
}

}  // namespace

Result<ProcessOutput> run_process(const std::vector<std::string>& argv, int timeout_ms) {
  std::array<int, 2> out{};
  std::array<int, 2> err{};
  if (::pipe2(out.data(), O_CLOEXEC) < 0) return fail_errno(Code::host_failed, "pipe");
  Fd out_read(out[0]);
  Fd out_write(out[1]);
  if (::pipe2(err.data(), O_CLOEXEC) < 0) return fail_errno(Code::host_failed, "pipe");
  Fd err_read(err[0]);
  Fd err_write(err[1]);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out_write.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, err_write.get(), 2);
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  pid_t pid = 0;
  const int error =
      ::posix_spawnp(&pid, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return fail(Code::host_failed, "{}: cannot start: {}; is its package installed? `snow doctor`",
                argv[0], strerror(error));
  }
  out_write.reset();
  err_write.reset();

  ProcessOutput output;
  const int64_t deadline = monotonic_ns() + int64_t{timeout_ms} * 1'000'000;
  bool out_open = true;
  bool err_open = true;
  bool killed = false;
  while (out_open || err_open) {
    const int64_t left_ms = (deadline - monotonic_ns()) / 1'000'000;
    if (left_ms <= 0 && !killed) {
      ::kill(pid, SIGKILL);
      killed = true;
      break;
    }
    std::array<pollfd, 2> polled{pollfd{out_open ? out_read.get() : -1, POLLIN, 0},
                                 pollfd{err_open ? err_read.get() : -1, POLLIN, 0}};
    ::poll(polled.data(), polled.size(), static_cast<int>(left_ms));
    if (polled[0].revents != 0) out_open = drain(out_read.get(), output.standard_output);
    if (polled[1].revents != 0) err_open = drain(err_read.get(), output.standard_error);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (killed) {
    return fail(Code::timed_out, "{}: did not end within {} ms", argv[0], timeout_ms);
  }
  output.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return output;
}

}  // namespace snow
