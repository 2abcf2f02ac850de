#include "keeper/server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <vector>

#include "base/file.h"
#include "base/log.h"

namespace snow {
namespace {

constexpr size_t kMaxOutgoing = 16384;  // packets a daemon may leave unread before it is dropped
constexpr int kPacketsPerRound = 64;
constexpr int64_t kEndLimitNs = 10'000'000'000;

bool same_user(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
         peer.uid == ::geteuid();
}

}  // namespace

Result<std::unique_ptr<KeeperServer>> KeeperServer::open(const std::string& run_dir, Fd signals) {
  const std::string path = run_dir + "/keeper.sock";
  // The socket is born with this mode; a chmod afterwards would leave a gap.
  const mode_t before = ::umask(0177);
  auto listener = listen_unix(path, SOCK_SEQPACKET);
  ::umask(before);
  if (!listener) return tl::unexpected<Error>(std::move(listener).error());
  return std::unique_ptr<KeeperServer>(
      new KeeperServer(run_dir, std::move(signals), std::move(*listener)));
}

KeeperServer::KeeperServer(const std::string& run_dir, Fd signals, Fd listener)
    : socket_path_(run_dir + "/keeper.sock"),
      signals_(std::move(signals)),
      listener_(std::move(listener)),
      children_(run_dir, {.spawned =
                              [this](uint64_t start, Result<pid_t> result) {
                                const auto at = starts_.find(start);
                                if (at == starts_.end()) return;
                                Reply reply{.number = at->second};
                                starts_.erase(at);
                                if (result) reply.pid = *result;
                                if (!result) reply.error = result.error();
                                queue(reply);
                              },
                          .exited =
                              [this](const KeptProcess& process) {
                                log_info("process {} ('{}', {}) ended with status {:#x}",
                                         process.pid, process.id, process.role, process.status);
                                if (greeted_) queue({.number = 0, .processes = {process}});
                              }}) {}

void KeeperServer::run() {
  while (!ending_ || (children_.any_left() && monotonic_ns() < end_deadline_ns_)) {
    wait_and_handle();
  }
  flush();
  ::unlink(socket_path_.c_str());
  log_info("ended{}", children_.any_left() ? "; some processes could not be ended" : "");
}

void KeeperServer::wait_and_handle() {
  std::vector<pollfd> polled;
  polled.push_back({signals_.get(), POLLIN, 0});
  polled.push_back({listener_.get(), POLLIN, 0});
  const short wanted = outgoing_.empty() ? POLLIN : POLLIN | POLLOUT;
  polled.push_back({daemon_.get(), wanted, 0});  // a negative one is ignored
  const auto reports = children_.report_fds();
  for (const int fd : reports) polled.push_back({fd, POLLIN, 0});
  const int timeout_ms = reports.empty() && !ending_ ? 5000 : 200;
  if (::poll(polled.data(), polled.size(), timeout_ms) < 0 && errno != EINTR) {
    log_error("poll: {}", strerror(errno));
    return;
  }
  for (size_t i = 3; i < polled.size(); ++i) {
    if (polled[i].revents != 0) children_.handle_report(polled[i].fd);
  }
  if (polled[0].revents != 0) handle_signals();
  // Before the listener: the end of one daemon makes room for the next.
  if ((polled[2].revents & ~POLLOUT) != 0) handle_daemon();
  if (polled[1].revents != 0) accept_daemon();
  children_.tick();
  flush();
}

void KeeperServer::handle_signals() {
  signalfd_siginfo info;
  while (::read(signals_.get(), &info, sizeof info) == sizeof info) {
    if (info.ssi_signo == SIGTERM && !ending_) {
      log_info("SIGTERM: ending");
      ending_ = true;
      end_deadline_ns_ = monotonic_ns() + kEndLimitNs;
      children_.kill_all();
    }
  }
  children_.reap();
}

void KeeperServer::accept_daemon() {
  Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket) return;
  if (!same_user(socket.get())) {
    log_warn("a connection of another user was refused");
    return;
  }
  if (daemon_) {
    const Error error{Code::exists,
                      socket_path_ +
                          ": another daemon uses this keeper; stop it, or give this one "
                          "a run folder of its own"};
    (void)send_packet(socket.get(), format_reply({.number = 0, .error = error}));
    log_warn("a second daemon was refused");
    return;
  }
  daemon_ = std::move(socket);
  greeted_ = false;
  queue({.number = kWelcome});
}

void KeeperServer::handle_daemon() {
  for (int i = 0; i < kPacketsPerRound && daemon_; ++i) {
    auto packet = receive_packet(daemon_.get());
    if (!packet && packet.error().code == Code::timed_out) return;
    if (!packet && packet.error().code == Code::corrupt) {
      log_warn("{}", packet.error().message);
      queue({.number = 0, .error = packet.error()});
      continue;
    }
    if (!packet) return drop_daemon(packet.error().message);
    if (packet->end) return drop_daemon("");
    auto request = parse_request(packet->text);
    if (!request) {
      log_warn("a request was refused: {}", request.error().message);
      queue({.number = request_number(packet->text), .error = request.error()});
      continue;
    }
    handle_request(*request, std::move(packet->fd));
  }
}

void KeeperServer::drop_daemon(const std::string& why) {
  if (greeted_ || !why.empty()) {
    log_info("the daemon is gone{}{}; its processes are kept", why.empty() ? "" : ": ", why);
  }
  daemon_.reset();
  outgoing_.clear();
  starts_.clear();
  greeted_ = false;
}

void KeeperServer::handle_request(const Request& request, Fd fd) {
  if (request.operation == Operation::hello) return greet(request);
  if (!greeted_) {
    return answer(request.number, fail(Code::wrong_state, "keeper: the first request is hello"));
  }
  switch (request.operation) {
    case Operation::hello:
      return;
    case Operation::fuse_fd:
      return answer_fuse_fd(request.number);
    case Operation::keep_fuse_fd:
      if (!fd) return answer(request.number, fail(Code::invalid, "keeper: no descriptor came"));
      fuse_ = std::move(fd);
      return answer(request.number, {});
    case Operation::table_fd:
      return answer_table_fd(request);
    case Operation::spawn: {
      if (ending_) {
        return answer(request.number, fail(Code::wrong_state, "the keeper is ending"));
      }
      const uint64_t start = next_start_++;
      starts_[start] = request.number;
      auto begun = children_.spawn(start, request.spec);
      if (begun) return;
      starts_.erase(start);
      return answer(request.number, begun);
    }
    case Operation::kill:
      return answer(request.number, children_.kill(request.pid));
    case Operation::list:
      return answer_list(request);
    case Operation::forget:
      children_.forget(request.pid);
      return answer(request.number, {});
    case Operation::hold:
      return answer(request.number, children_.hold(request.pid));
    case Operation::let_go:
      return answer(request.number, children_.let_go(request.pid));
    case Operation::shut_down:
      log_info("the daemon asks to end");
      ending_ = true;
      end_deadline_ns_ = monotonic_ns() + kEndLimitNs;
      children_.kill_all();
      return answer(request.number, {});
  }
}

void KeeperServer::greet(const Request& request) {
  if (request.version != kKeeperVersion) {
    return answer(request.number,
                  fail(Code::wrong_state,
                       "the keeper speaks version {} of its protocol, the daemon {}; stop all VMs "
                       "and end the keeper (SIGTERM) to upgrade",
                       kKeeperVersion, request.version));
  }
  greeted_ = true;
  answer(request.number, {});
  for (pid_t after = 0;;) {
    const auto listed = children_.list(after, kMaxListed);
    if (listed.empty()) break;
    for (const KeptProcess& process : listed) {
      if (!process.running) queue({.number = 0, .processes = {process}});
    }
    after = listed.back().pid;
  }
}

void KeeperServer::answer_fuse_fd(uint64_t number) {
  Fd copy;
  if (fuse_) copy.reset(::fcntl(fuse_.get(), F_DUPFD_CLOEXEC, 3));
  queue({.number = number}, std::move(copy));
}

// Made at the first request; a later daemon that needs a longer one gets it grown, with zeros.
void KeeperServer::answer_table_fd(const Request& request) {
  if (!table_) table_.reset(::memfd_create("snow-table", MFD_CLOEXEC));
  struct stat status {};
  if (!table_ || ::fstat(table_.get(), &status) < 0 ||
      (static_cast<uint64_t>(status.st_size) < request.bytes &&
       ::ftruncate(table_.get(), static_cast<off_t>(request.bytes)) < 0)) {
    return answer(request.number,
                  fail_errno(Code::host_failed, "keeper: table of {} bytes", request.bytes));
  }
  queue({.number = request.number}, Fd(::fcntl(table_.get(), F_DUPFD_CLOEXEC, 3)));
}

void KeeperServer::answer_list(const Request& request) {
  Reply reply{.number = request.number};
  reply.processes = children_.list(request.pid, kMaxListed);
  reply.more = reply.processes.size() == kMaxListed;
  queue(reply);
}

void KeeperServer::answer(uint64_t number, const Result<void>& result) {
  Reply reply{.number = number};
  if (!result) reply.error = result.error();
  queue(reply);
}

void KeeperServer::queue(const Reply& reply, Fd fd) {
  if (!daemon_) return;
  if (outgoing_.size() >= kMaxOutgoing) return drop_daemon("it does not read its answers");
  outgoing_.push_back({format_reply(reply), std::move(fd)});
}

void KeeperServer::flush() {
  while (daemon_ && !outgoing_.empty()) {
    const Outgoing& first = outgoing_.front();
    const auto sent = send_packet(daemon_.get(), first.text, first.fd.get());
    if (!sent && sent.error().code == Code::timed_out) return;
    if (!sent) return drop_daemon(sent.error().message);
    outgoing_.pop_front();
  }
}

}  // namespace snow
