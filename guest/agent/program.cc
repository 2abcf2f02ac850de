#include "guest/agent/program.h"

#include <fcntl.h>
#include <grp.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

namespace snow::guest {

using channel::field;
using channel::Fields;
using channel::number_field;

namespace {

constexpr int64_t kMaxArguments = 4096;

std::optional<unsigned> to_number(const std::string& text) {
  if (text.empty() || text.size() > 9) return std::nullopt;
  if (text.find_first_not_of("0123456789") != std::string::npos) return std::nullopt;
  return static_cast<unsigned>(atol(text.c_str()));
}

}  // namespace

std::optional<User> find_user(const std::string& name, const std::string& passwd,
                              const std::string& group) {
  const auto number = to_number(name);
  std::optional<User> user;
  for (const std::string& line : split(passwd, '\n')) {
    const auto parts = split(line, ':');
    if (parts.size() < 7) continue;
    const auto uid = to_number(parts[2]);
    const auto gid = to_number(parts[3]);
    if (!uid || !gid || (parts[0] != name && uid != number)) continue;
    user = User{*uid,
                *gid,
                {*gid},
                parts[0],
                parts[5].empty() ? "/" : parts[5],
                parts[6].empty() ? "/bin/sh" : parts[6]};
    break;
  }
  if (!user) return std::nullopt;
  for (const std::string& line : split(group, '\n')) {
    const auto parts = split(line, ':');
    if (parts.size() < 4) continue;
    const auto gid = to_number(parts[2]);
    const auto members = split(parts[3], ',');
    if (gid && *gid != user->gid &&
        std::find(members.begin(), members.end(), user->name) != members.end()) {
      user->groups.push_back(*gid);
    }
  }
  return user;
}

namespace {

struct Child {
  std::vector<std::string> arguments;
  std::vector<std::string> environment;
  std::string directory;
  User user;
  bool change_user = false;
  int in = -1, out = -1, err = -1;
  bool terminal = false;
  int exec_procs_fd = -1;
};

[[noreturn]] void give_up(const std::string& what, int error) {
  const std::string line = "snow-agent: " + what + ": " + error_text(error) + "\n";
  (void)!write(2, line.data(), line.size());
  _exit(error == ENOENT ? 127 : 126);
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (std::string& text : strings) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

// In the child, between fork and exec.
[[noreturn]] void run_child(Child& child) {
  setsid();
  if (child.exec_procs_fd >= 0) (void)!write(child.exec_procs_fd, "0", 1);
  if (child.terminal) ioctl(child.in, TIOCSCTTY, 0);
  dup2(child.in, 0);
  dup2(child.out, 1);
  dup2(child.err, 2);
  close_range(3, ~0u, 0);
  for (int signal_number = 1; signal_number < NSIG; ++signal_number) {
    signal(signal_number, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (child.change_user) {
    const User& user = child.user;
    if (setgroups(user.groups.size(), user.groups.data()) != 0 || setgid(user.gid) != 0 ||
        setuid(user.uid) != 0) {
      give_up("user " + user.name, errno);
    }
  }
  if (chdir(child.directory.c_str()) != 0)
    give_up(child.directory, EACCES == errno ? errno : ENOTDIR);
  std::vector<char*> environment = pointers(child.environment);
  environ = environment.data();
  std::vector<char*> arguments = pointers(child.arguments);
  execvp(arguments[0], arguments.data());
  give_up(child.arguments[0], errno);
}

std::optional<StartError> describe(const Fields& fields, const Environment& base, Child& child) {
  const int64_t count = number_field(fields, "argc").value_or(0);
  if (count < 1 || count > kMaxArguments) {
    return StartError{"invalid", "exec: argc is missing or out of range"};
  }
  for (int64_t i = 0; i < count; ++i) {
    child.arguments.emplace_back(field(fields, "argv." + std::to_string(i)));
  }
  const std::string name(field(fields, "user"));
  const auto user =
      find_user(name.empty() ? "0" : name, read_small_file("/etc/passwd").value_or(""),
                read_small_file("/etc/group").value_or(""));
  if (!user && !name.empty()) {
    return StartError{"not_found", "user '" + name + "': not in the guest's /etc/passwd"};
  }
  child.user = user.value_or(User{});
  child.change_user = !name.empty();
  child.terminal = field(fields, "terminal") == "1";
  child.directory = field(fields, "directory");
  if (child.directory.empty()) child.directory = "/";

  Environment environment = base;
  environment.emplace("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  environment["HOME"] = child.user.home;
  environment["USER"] = environment["LOGNAME"] = child.user.name;
  environment["SHELL"] = child.user.shell;
  if (child.terminal) environment["TERM"] = "xterm-256color";
  for (auto at = fields.lower_bound("env."); at != fields.end(); ++at) {
    if (!at->first.starts_with("env.")) break;
    environment[at->first.substr(4)] = at->second;
  }
  for (const auto& [key, value] : environment) child.environment.push_back(key + "=" + value);
  return std::nullopt;
}

bool make_pipe(Fd& read_end, Fd& write_end) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return false;
  read_end = Fd(ends[0]);
  write_end = Fd(ends[1]);
  return true;
}

void set_nonblocking(const Fd& fd) {
  if (fd) fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
}

}  // namespace

std::optional<StartError> start_program(const Fields& fields, const Environment& base,
                                        int exec_procs_fd, Program& program) {
  Child child;
  if (auto error = describe(fields, base, child)) return error;
  child.exec_procs_fd = exec_procs_fd;
  Fd in;
  Fd out;
  Fd err;
  if (child.terminal) {
    winsize size{};
    size.ws_row = static_cast<uint16_t>(number_field(fields, "rows").value_or(24));
    size.ws_col = static_cast<uint16_t>(number_field(fields, "columns").value_or(80));
    int master = -1;
    int slave = -1;
    if (openpty(&master, &slave, nullptr, nullptr, &size) != 0) {
      return StartError{"guest_failed", "no terminal: " + error_text(errno)};
    }
    fcntl(master, F_SETFD, FD_CLOEXEC);
    program.out = Fd(master);
    in = Fd(slave);
    child.in = child.out = child.err = slave;
    if (child.change_user) (void)!fchown(slave, child.user.uid, child.user.gid);
  } else {
    if (!make_pipe(in, program.in) || !make_pipe(program.out, out) ||
        !make_pipe(program.err, err)) {
      return StartError{"guest_failed", "no pipe: " + error_text(errno)};
    }
    child.in = in.get();
    child.out = out.get();
    child.err = err.get();
  }
  program.terminal = child.terminal;
  program.pid = fork();
  if (program.pid < 0) return StartError{"guest_failed", "fork: " + error_text(errno)};
  if (program.pid == 0) run_child(child);
  set_nonblocking(program.in);
  set_nonblocking(program.out);
  set_nonblocking(program.err);
  return std::nullopt;
}

}  // namespace snow::guest
