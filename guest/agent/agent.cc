#include "guest/agent/agent.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

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
    const bool was_frozen = frozen_;
    if (was_frozen) {
      wait_for_resume(messages);
    } else {
      wait_for_work(messages);
    }
    for (const Message& message : messages) handle(message);
    messages.clear();
    if (!was_frozen) {
      streams_.finish_due();
    } else if (frozen_ && monotonic_us() - frozen_at_us_ > int64_t{kResumeTimeoutMs} * 1000) {
      log_line("no resume came; going on");
      let_go();
    }
    port_.flush();
  }
  if (frozen_) let_go();
  return 0;
}

void Agent::wait_for_work(std::vector<Message>& messages) {
  Poller poller;
  poller.add(port_.poll_fd(), POLLIN, [&](short) { stop_ = !port_.service(messages) || stop_; });
  poller.add(signals_.get(), POLLIN, [this](short) { handle_signals(); });
  streams_.add_to(poller);
  calls_.add_to(poller);
  poller.run();
}

// In a busy loop at first: who sleeps over a freeze is woken by way of the interrupt, the scheduler
// and a context switch, all of it translated anew.
void Agent::wait_for_resume(std::vector<Message>& messages) {
  while (!stop_ && messages.empty() && monotonic_us() - frozen_at_us_ < kBusyWaitUs) {
    stop_ = !port_.receive(messages);
  }
  if (messages.empty() && !stop_) {
    Poller poller;
    poller.add(port_.poll_fd(), POLLIN, [&](short) { stop_ = !port_.service(messages); });
    const int64_t left_us = frozen_at_us_ + int64_t{kResumeTimeoutMs} * 1000 - monotonic_us();
    poller.limit(left_us <= 0 ? 0 : static_cast<int>(left_us / 1000 + 1));
    poller.run();
  }
  got_at_us_ = monotonic_us();
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
      return resume(message.payload);
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
  const Freezer::Outcome outcome = freezer_.freeze(kFreezeTimeoutMs);
  held_since_us_ = outcome.since_us;
  const int64_t freeze_us = monotonic_us() - held_since_us_;
  port_.flush_all(kFlushTimeoutMs / 2);
  frozen_ = true;
  port_.send(Type::prepared, 0,
             Fields{{"held", outcome.held ? "1" : "0"},
                    {"why", outcome.why},
                    {"freeze_us", std::to_string(freeze_us)}});
  port_.flush_all(kFlushTimeoutMs / 2);
  frozen_at_us_ = monotonic_us();
}

// A clone's processes go on when it is somebody else in all respects. The parent stays who it is:
// its processes go on as soon as there are fresh random numbers, and the rest follows. What is
// called for the first time after a thaw is slow under emulation, and here it would lengthen the
// pause; that is also why the message is not decoded before.
void Agent::resume(std::string_view payload) {
  const bool changed = channel::field_in(payload, "changed") == "1";
  const std::string_view index = channel::field_in(payload, "index");
  const bool clone = changed && !index.empty() && index != "0";
  const int64_t wait_us = frozen_ ? got_at_us_ - frozen_at_us_ : 0;
  Laps laps;
  std::string reseeded = "none";
  if (changed) reseeded = random_pool_.reseed(channel::field_in(payload, "entropy"));
  const int64_t entropy_us = laps.end();
  if (!clone) let_go();
  const auto fields = channel::decode_fields(payload);
  if (!fields) {
    return port_.send(Type::refused, 0, Fields{{"reason", "resume: malformed fields"}});
  }
  Fields report = {{"reseeded", std::move(reseeded)},
                   {"identity", "none"},
                   {"hooks", "none"},
                   {"wait_us", std::to_string(wait_us)},
                   {"entropy_us", std::to_string(entropy_us)}};
  laps.end();
  report["clock"] = set_clock(channel::number_field(*fields, "wall_ns"), report);
  report["clock_us"] = std::to_string(laps.end());
  if (changed) {
    become(*fields, options_.paths, report);
    streams_.set_environment(environment_of(*fields));
    if (clone) streams_.cut_off();
    calls_.resumed(*fields);
  }
  if (clone) let_go();
  report["held_us"] = std::to_string(held_us_);
  port_.send(Type::ready, 0, report);
  port_.flush();
}

void Agent::let_go() {
  freezer_.thaw();
  held_us_ = std::exchange(frozen_, false) ? monotonic_us() - held_since_us_ : 0;
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
