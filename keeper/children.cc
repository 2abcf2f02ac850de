#include "keeper/children.h"

#include <fcntl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdint>

#include "base/file.h"
#include "base/log.h"
#include "keeper/start.h"

namespace snow {
namespace {

constexpr size_t kMaxChildren = 4096;  // running ones
constexpr size_t kMaxExited = 4096;    // exits that nobody forgot
constexpr int64_t kStartLimitNs = 30'000'000'000;
constexpr size_t kMaxReportBytes = 8192;

// ptrace's data argument, for requests whose data is a number.
void* number(int value) { return reinterpret_cast<void*>(static_cast<intptr_t>(value)); }

}  // namespace

Children::Children(const std::string& run_dir, Callbacks callbacks)
    : callbacks_(std::move(callbacks)), cgroups_(run_dir) {}

Result<void> Children::spawn(uint64_t request, const SpawnSpec& spec) {
  size_t running = 0;
  for (const auto& [pid, child] : table_) {
    if (!child.process.running) continue;
    ++running;
    if (child.process.id == spec.id && child.process.role == spec.role) {
      return fail(Code::exists, "spawn of '{}': process {} has this id and role ('{}') already",
                  spec.id, pid, spec.role);
    }
  }
  if (running >= kMaxChildren) {
    return fail(Code::no_room, "spawn of '{}': the keeper has {} processes already", spec.id,
                running);
  }
  const std::string group =
      cgroups_.make(fmt::format("{}-{}", spec.id, next_group_++), spec.memory_limit_bytes);
  auto started = start_in_jail(spec, group);
  if (!started) {
    cgroups_.remove(group);
    return tl::unexpected<Error>(std::move(started).error());
  }
  Child child;
  child.process.pid = started->pid;
  child.process.id = spec.id;
  child.process.role = spec.role;
  child.request = request;
  child.report = std::move(started->report);
  child.deadline_ns = monotonic_ns() + kStartLimitNs;
  child.root = spec.root;
  child.cgroup = group;
  table_.insert_or_assign(started->pid, std::move(child));
  return {};
}

Result<Children::Table::iterator> Children::find_running(pid_t pid) {
  const auto at = table_.find(pid);
  if (at == table_.end()) {
    return fail(Code::not_found, "process {}: not one of this keeper's", pid);
  }
  if (!at->second.process.running) {
    return fail(Code::wrong_state, "process {} ('{}') has ended already", pid,
                at->second.process.id);
  }
  return at;
}

Result<void> Children::kill(pid_t pid) {
  auto at = find_running(pid);
  if (!at) {
    if (at.error().code == Code::wrong_state) return {};  // what was wanted
    return tl::unexpected<Error>(std::move(at).error());
  }
  Child& child = (*at)->second;
  child.let_go = child.traced;
  // We are its parent and have not reaped it, so the pid is still its own.
  if (::kill(pid, SIGKILL) < 0) return fail_errno(Code::internal, "process {}: kill", pid);
  if (child.stopped_at_exit) detach(child, 0);
  return {};
}

void Children::kill_all() {
  for (auto& [pid, child] : table_) {
    if (child.process.running) (void)kill(pid);
  }
}

Result<void> Children::hold(pid_t pid) {
  SNOW_ASSIGN(const auto at, find_running(pid));
  Child& child = at->second;
  if (child.report) {
    return fail(Code::wrong_state, "process {} ('{}') is still being started", pid,
                child.process.id);
  }
  if (child.traced && child.stopped_at_exit && child.let_go) {
    return fail(Code::wrong_state, "process {} ('{}') is ending", pid, child.process.id);
  }
  child.let_go = false;
  if (child.traced) return {};
  if (::ptrace(PTRACE_SEIZE, pid, nullptr, number(PTRACE_O_TRACEEXIT | PTRACE_O_EXITKILL)) < 0) {
    return fail_errno(Code::wrong_state, "process {} ('{}') cannot be held", pid, child.process.id);
  }
  child.traced = true;
  return {};
}

Result<void> Children::let_go(pid_t pid) {
  auto at = find_running(pid);
  if (!at) {
    if (at.error().code == Code::wrong_state) return {};
    return tl::unexpected<Error>(std::move(at).error());
  }
  Child& child = (*at)->second;
  if (!child.traced || child.let_go) return {};
  child.let_go = true;
  if (child.stopped_at_exit) {
    detach(child, 0);
  } else {
    ::ptrace(PTRACE_INTERRUPT, pid, nullptr, nullptr);  // detached at the stop that follows
  }
  return {};
}

void Children::forget(pid_t pid) {
  const auto at = table_.find(pid);
  if (at != table_.end() && !at->second.process.running) table_.erase(at);
}

std::vector<KeptProcess> Children::list(pid_t after, size_t limit) const {
  std::vector<KeptProcess> listed;
  for (auto at = table_.upper_bound(after); at != table_.end() && listed.size() < limit; ++at) {
    if (!at->second.report) listed.push_back(at->second.process);
  }
  return listed;
}

bool Children::any_left() const {
  return std::any_of(table_.begin(), table_.end(),
                     [](const auto& entry) { return entry.second.process.running; });
}

std::vector<int> Children::report_fds() const {
  std::vector<int> fds;
  for (const auto& [pid, child] : table_) {
    if (child.report) fds.push_back(child.report.get());
  }
  return fds;
}

void Children::handle_report(int fd) {
  const auto at = std::find_if(table_.begin(), table_.end(),
                               [fd](const auto& entry) { return entry.second.report.get() == fd; });
  if (at == table_.end()) return;
  Child& child = at->second;
  char bytes[1024];
  for (;;) {
    const ssize_t got = ::read(fd, bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return finish_start(child);
    if (child.said.size() < kMaxReportBytes) child.said.append(bytes, static_cast<size_t>(got));
  }
}

// The pipe closes at exec, or when the child ends before it. In the second case the failure is
// answered when the child is reaped, so that nothing of it is left when the caller knows.
void Children::finish_start(Child& child) {
  child.report.reset();
  if (child.said.empty() && !child.too_late) callbacks_.spawned(child.request, child.process.pid);
}

void Children::tick() {
  cgroups_.tidy();
  const int64_t now = monotonic_ns();
  for (auto& [pid, child] : table_) {
    if (!child.report || child.too_late || now < child.deadline_ns) continue;
    child.too_late = true;
    ::kill(pid, SIGKILL);
  }
}

void Children::reap() {
  for (;;) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG | __WALL);
    if (pid < 0 && errno == EINTR) continue;
    if (pid <= 0) return;
    const auto at = table_.find(pid);
    if (at == table_.end()) {
      log_warn("process {} ended with status {:#x}, but nobody asked for it", pid, status);
    } else if (WIFSTOPPED(status)) {
      handle_stop(at->second, status);
    } else {
      handle_end(at, status);
    }
  }
}

void Children::detach(Child& child, int signal) {
  // It fails only if a SIGKILL woke the process meanwhile; then its next stop comes here again.
  if (::ptrace(PTRACE_DETACH, child.process.pid, nullptr, number(signal)) < 0) return;
  child.traced = false;
  child.let_go = false;
  child.stopped_at_exit = false;
}

void Children::handle_stop(Child& child, int status) {
  const pid_t pid = child.process.pid;
  const int event = status >> 16;
  const int signal = WSTOPSIG(status);
  if (event == PTRACE_EVENT_EXIT) {
    child.stopped_at_exit = true;
    if (child.let_go) return detach(child, 0);
    log_info("process {} ('{}') was ended while it is held; its memory stays", pid,
             child.process.id);
    return;
  }
  if (event == PTRACE_EVENT_STOP) {
    if (child.let_go) return detach(child, 0);
    // A real stop (SIGSTOP and its like) goes on until SIGCONT; SIGTRAP is only a notice.
    ::ptrace(signal == SIGTRAP ? PTRACE_CONT : PTRACE_LISTEN, pid, nullptr, nullptr);
    return;
  }
  if (child.let_go) return detach(child, signal);
  ::ptrace(PTRACE_CONT, pid, nullptr, number(event == 0 ? signal : 0));
}

void Children::handle_end(Table::iterator at, int status) {
  Child& child = at->second;
  if (child.report) handle_report(child.report.get());
  child.process.running = false;
  child.process.status = status;
  cgroups_.remove(child.cgroup);
  ::rmdir(child.root.c_str());
  if (!child.said.empty() || child.too_late) {
    const uint64_t request = child.request;
    const Error error = child.too_late
                            ? Error{Code::timed_out, "spawn of '" + child.process.id +
                                                         "': its jail was not ready in time; is a "
                                                         "bind's source on a dead FUSE mount?"}
                            : parse_start_report(child.process.id, child.said);
    table_.erase(at);
    callbacks_.spawned(request, tl::unexpected<Error>(error));
    return;
  }
  callbacks_.exited(child.process);
  drop_oldest_exited();
}

void Children::drop_oldest_exited() {
  const auto exited = [](const auto& entry) { return !entry.second.process.running; };
  if (static_cast<size_t>(std::count_if(table_.begin(), table_.end(), exited)) <= kMaxExited) {
    return;
  }
  const auto at = std::find_if(table_.begin(), table_.end(), exited);
  log_warn("process {} ('{}'): its exit was never forgotten and is dropped", at->first,
           at->second.process.id);
  table_.erase(at);
}

}  // namespace snow
