#include "guest/agent/agent.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace snow::guest {

using channel::Fields;
using channel::Message;
using channel::Type;

namespace {

Fd block_signals() {
  signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  for (const int number : {SIGCHLD, SIGTERM, SIGINT}) sigaddset(&set, number);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return Fd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

}  // namespace

Agent::Agent(const AgentOptions& options)
    : options_(options),
      signals_(block_signals()),
      freezer_(options.cgroup_root),
      port_(Port::open(options.port)),
      streams_(port_, freezer_.exec_procs_fd()),
      calls_(port_, options.socket) {}

int Agent::run() {
  say_hello();
  std::vector<Message> messages;
  while (!stop_) {
    Poller poller;
    poller.add(port_.poll_fd(), POLLIN, [&](short) { stop_ = !port_.service(messages) || stop_; });
    if (frozen_) {
      const int64_t left_us = frozen_at_us_ + int64_t{kResumeTimeoutMs} * 1000 - monotonic_us();
      poller.limit(left_us <= 0 ? 0 : static_cast<int>(left_us / 1000 + 1));
    } else {
      poller.add(signals_.get(), POLLIN, [this](short) { handle_signals(); });
      streams_.add_to(poller);
      calls_.add_to(poller);
    }
    poller.run();
    for (const Message& message : messages) handle(message);
    messages.clear();
    if (!frozen_) {
      streams_.finish_due();
    } else if (monotonic_us() - frozen_at_us_ > int64_t{kResumeTimeoutMs} * 1000) {
      log_line("no resume came; going on");
      frozen_ = false;
      freezer_.thaw();
    }
    port_.flush();
  }
  if (frozen_) freezer_.thaw();
  return 0;
}

void Agent::handle(const Message& message) {
  switch (message.type) {
    case Type::ask:
      // From a host that has not heard of us: it began just now, and knows nothing of what its
      // predecessor had open.
      streams_.cut_off();
      calls_.host_is_new();
      return say_hello();
    case Type::prepare:
      return prepare();
    case Type::resume:
      if (const auto fields = channel::decode_fields(message.payload)) return resume(*fields);
      return port_.send(Type::refused, 0, Fields{{"reason", "resume: malformed fields"}});
    case Type::refused:
      return log_line("the host refused a message");
    default:
      if (message.stream % 2 == 1) {
        calls_.handle(message);
      } else {
        streams_.handle(message);
      }
  }
}

void Agent::say_hello() {
  std::string boot_id = read_small_file("/proc/sys/kernel/random/boot_id").value_or("");
  if (!boot_id.empty()) boot_id.pop_back();
  port_.send(
      Type::hello, 0,
      Fields{{"version", std::to_string(channel::kVersion)},
             {"agent", std::string("snow-agent ") + SNOW_VERSION},
             {"boot_id", boot_id},
             {"features", freezer_.available() ? "exec,files,calls,freezer" : "exec,files,calls"}});
}

// A second prepare without a resume between is answered alike.
void Agent::prepare() {
  const int64_t start = monotonic_us();
  const Freezer::Outcome outcome = freezer_.freeze(kFreezeTimeoutMs);
  port_.flush_all(kFlushTimeoutMs / 2);
  frozen_ = true;
  frozen_at_us_ = monotonic_us();
  port_.send(Type::prepared, 0,
             Fields{{"held", outcome.held ? "1" : "0"},
                    {"why", outcome.why},
                    {"freeze_us", std::to_string(frozen_at_us_ - start)}});
  port_.flush_all(kFlushTimeoutMs / 2);
}

// A clone's processes go on when it is somebody else in all respects. The parent stays who it is:
// its processes go on with fresh random numbers and the right time, and the rest follows. What is
// called for the first time after a thaw is slow under emulation, and here it would lengthen the
// pause.
void Agent::resume(const Fields& fields) {
  const bool changed = channel::field(fields, "changed") == "1";
  const bool clone = changed && channel::number_field(fields, "index").value_or(0) > 0;
  Fields report = {
      {"reseeded", "none"}, {"clock", "none"}, {"identity", "none"}, {"hooks", "none"}};
  if (changed) {
    refresh(fields, report);
  } else {
    report["clock"] = set_clock(channel::number_field(fields, "wall_ns"), report);
  }
  if (!clone) thaw(report);
  if (changed) {
    become(fields, options_.paths, report);
    streams_.set_environment(environment_of(fields));
    if (clone) streams_.cut_off();
    calls_.resumed(fields);
  }
  if (clone) thaw(report);
  port_.send(Type::ready, 0, report);
  port_.flush();
}

void Agent::thaw(Fields& report) {
  const int64_t start = monotonic_us();
  freezer_.thaw();
  frozen_ = false;
  report["thaw_us"] = std::to_string(monotonic_us() - start);
}

void Agent::handle_signals() {
  signalfd_siginfo info{};
  while (read(signals_.get(), &info, sizeof info) == sizeof info) {
    if (info.ssi_signo != SIGCHLD) stop_ = true;
  }
  int status = 0;
  for (pid_t pid = waitpid(-1, &status, WNOHANG); pid > 0; pid = waitpid(-1, &status, WNOHANG)) {
    streams_.reaped(pid, status);
  }
}

}  // namespace snow::guest
