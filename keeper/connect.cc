#include "keeper/connect.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <string>
#include <thread>

#include "base/file.h"
#include "keeper/protocol.h"

namespace snow {
namespace {

constexpr int64_t kStartLimitNs = 20'000'000'000;
// A daemon that was killed a moment ago may not have let go of the keeper yet.
constexpr int64_t kBusyLimitNs = 500'000'000;
constexpr time_t kGreetingLimitSeconds = 20;
constexpr auto kPause = std::chrono::milliseconds(2);

Result<Fd> take_lock(const std::string& run_dir) {
  const std::string path = run_dir + "/keeper.lock";
  Fd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock) return fail_errno(Code::host_failed, "{}: cannot open", path);
  while (::flock(lock.get(), LOCK_EX) < 0) {
    if (errno != EINTR) return fail_errno(Code::host_failed, "{}: cannot lock", path);
  }
  return lock;
}

// posix_spawn's two argument objects.
struct SpawnArguments {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  SpawnArguments() {
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
  }
  ~SpawnArguments() {
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
  }
  SpawnArguments(const SpawnArguments&) = delete;
  SpawnArguments& operator=(const SpawnArguments&) = delete;
};

Result<Fd> start_keeper(const Keeper::Options& options) {
  const std::string log = options.run_dir + "/keeper.log";
  SpawnArguments arguments;
  auto* const files = &arguments.files;
  posix_spawn_file_actions_addopen(files, 0, "/dev/null", O_RDWR, 0);
  posix_spawn_file_actions_addopen(files, 1, "/dev/null", O_RDWR, 0);
  posix_spawn_file_actions_addopen(files, 2, log.c_str(),
                                   O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW, 0640);
  posix_spawn_file_actions_addclosefrom_np(files, 3);
  sigset_t none;
  sigset_t all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&arguments.attributes, &none);
  posix_spawnattr_setsigdefault(&arguments.attributes, &all);
  posix_spawnattr_setflags(&arguments.attributes,
                           POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::string program = options.program;
  std::string run_dir = options.run_dir;
  char* const argv[] = {program.data(), run_dir.data(), nullptr};
  pid_t pid = 0;
  const int error =
      ::posix_spawn(&pid, program.c_str(), files, &arguments.attributes, argv, environ);
  if (error != 0) {
    errno = error;
    return fail_errno(Code::host_failed, "keeper '{}' cannot be started (log: {})", program, log);
  }
  Fd pidfd = open_pidfd(pid);
  if (!pidfd) return fail_errno(Code::host_failed, "keeper {}: pidfd", pid);
  return pidfd;
}

Result<Reply> read_reply(int socket) {
  auto packet = receive_packet(socket);
  if (!packet && packet.error().code == Code::timed_out) {
    return fail(Code::unavailable, "the keeper does not answer; see keeper.log");
  }
  if (!packet) return tl::unexpected<Error>(std::move(packet).error());
  if (packet->end) return fail(Code::unavailable, "the keeper closed the connection");
  SNOW_ASSIGN(Reply reply, parse_reply(packet->text));
  if (reply.error) return tl::unexpected<Error>(std::move(*reply.error));
  return reply;
}

Result<void> greet(int socket) {
  const timeval limit{kGreetingLimitSeconds, 0};
  const timeval unlimited{0, 0};
  ::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  SNOW_TRY(read_reply(socket));  // the welcome
  Request hello;
  hello.number = kWelcome + 1;
  hello.version = kKeeperVersion;
  SNOW_ASSIGN(const std::string text, format_request(hello));
  SNOW_TRY(send_packet(socket, text));
  SNOW_TRY(read_reply(socket));
  ::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &unlimited, sizeof unlimited);
  return {};
}

Result<pid_t> pid_of_peer(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
    return fail_errno(Code::host_failed, "keeper: SO_PEERCRED");
  }
  if (peer.uid != ::geteuid()) {
    return fail(Code::denied, "keeper.sock belongs to a process of user {}, not to us", peer.uid);
  }
  return peer.pid;
}

}  // namespace

// glibc 2.36 declares pidfd_open without C linkage.
Fd open_pidfd(pid_t pid) { return Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))); }

bool await_keeper_end(int pidfd, int timeout_ms) {
  pollfd polled{pidfd, POLLIN, 0};
  const int64_t deadline = monotonic_ns() + int64_t{timeout_ms} * 1'000'000;
  int64_t left_ms = timeout_ms;
  while (::poll(&polled, 1, static_cast<int>(left_ms)) < 0 && errno == EINTR) {
    left_ms = std::max<int64_t>(0, (deadline - monotonic_ns()) / 1'000'000);
  }
  siginfo_t info{};
  (void)::waitid(P_PIDFD, static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG);
  return polled.revents != 0;
}

Result<KeeperConnection> connect_keeper(const Keeper::Options& options) {
  SNOW_TRY(make_folders(options.run_dir, 0755));
  SNOW_ASSIGN(const Fd lock, take_lock(options.run_dir));
  const std::string path = options.run_dir + "/keeper.sock";
  const int64_t begin = monotonic_ns();
  Fd started;
  for (;; std::this_thread::sleep_for(kPause)) {
    auto socket = connect_unix(path, SOCK_SEQPACKET);
    if (!socket && socket.error().code != Code::unavailable) {
      return tl::unexpected<Error>(std::move(socket).error());
    }
    if (socket) {
      SNOW_ASSIGN(const pid_t pid, pid_of_peer(socket->get()));
      Fd keeper = open_pidfd(pid);
      if (!keeper) return fail_errno(Code::unavailable, "keeper {}: pidfd", pid);
      auto greeted = greet(socket->get());
      if (greeted) {
        return KeeperConnection{std::move(*socket), std::move(keeper), pid, started.valid()};
      }
      const bool busy = greeted.error().code == Code::exists;
      if (!busy || monotonic_ns() - begin > kBusyLimitNs) {
        return tl::unexpected<Error>(std::move(greeted).error());
      }
    } else if (!started) {
      SNOW_ASSIGN(started, start_keeper(options));
    } else if (await_keeper_end(started.get(), 0)) {
      return fail(Code::host_failed, "the keeper '{}' ended at once; {}/keeper.log says why",
                  options.program, options.run_dir);
    } else if (monotonic_ns() - begin > kStartLimitNs) {
      return fail(Code::timed_out, "the keeper '{}' does not listen on {}; see {}/keeper.log",
                  options.program, path, options.run_dir);
    }
  }
}

}  // namespace snow
