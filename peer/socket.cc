#include "peer/socket.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

namespace snow::peer {
namespace {

// A host that vanished without a word is noticed after about 10 + 8 * 2 s. So many probes, that a
// network which loses every fifth packet does not pass for a host that vanished.
constexpr int kKeepAliveIdleSeconds = 10;
constexpr int kKeepAliveEverySeconds = 2;
constexpr int kKeepAliveProbes = 8;
constexpr int kBacklog = 512;
// A guest stands still until a page has come: a lost packet is sent again after milliseconds, as it
// suits hosts in one network, not after the 200 ms, 400 ms, ... that suit the world. Options of
// Linux 6.15, newer than the headers; older kernels know the one without numbers here only.
constexpr int kTcpRtoMinUs = 45;
constexpr int kTcpDelackMaxUs = 46;
constexpr int kResendLeastUs = 20'000;
constexpr int kAcknowledgeMostUs = 5'000;  // well below: what is only late is not sent again

void set_option(int fd, int level, int name, int value) {
  // These only make a connection better; one without them still works.
  (void)::setsockopt(fd, level, name, &value, sizeof value);
}

tl::unexpected<Error> late(const Deadline& deadline) {
  return fail(Code::timed_out, "no answer within {} ms", deadline.timeout_ms());
}

// False: the deadline passed.
Result<bool> wait_for(int fd, short events, const Deadline& deadline) {
  for (;;) {
    pollfd waiting{fd, events, 0};
    const int ready = ::poll(&waiting, 1, deadline.left_ms());
    if (ready > 0) return true;
    if (ready == 0) return false;
    if (errno != EINTR) return fail_errno(Code::host_failed, "poll failed");
  }
}

}  // namespace

Socket::Socket(Fd fd) : fd_(std::move(fd)) {
  set_option(fd_.get(), IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd_.get(), IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1);
  set_option(fd_.get(), IPPROTO_TCP, kTcpRtoMinUs, kResendLeastUs);
  set_option(fd_.get(), IPPROTO_TCP, kTcpDelackMaxUs, kAcknowledgeMostUs);
  set_option(fd_.get(), SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd_.get(), IPPROTO_TCP, TCP_KEEPIDLE, kKeepAliveIdleSeconds);
  set_option(fd_.get(), IPPROTO_TCP, TCP_KEEPINTVL, kKeepAliveEverySeconds);
  set_option(fd_.get(), IPPROTO_TCP, TCP_KEEPCNT, kKeepAliveProbes);
}

bool Socket::set_patience(int timeout_ms) {
  if (timeout_ms == patience_ms_) return true;
  const timeval patience = timeout_ms < 0
                               ? timeval{0, 0}
                               : timeval{timeout_ms / 1000, int64_t{timeout_ms} % 1000 * 1000};
  if (::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0) {
    return false;
  }
  patience_ms_ = timeout_ms;
  return true;
}

Result<size_t> Socket::read_some(std::span<std::byte> into, const Deadline& deadline) {
  // The usual case is one answer that is waited for from the start: a blocking recv with the
  // socket's own timeout is one system call instead of poll and recv. Later parts of a long frame
  // have less time left, and poll says how much.
  const int left_ms = deadline.left_ms();
  const bool whole = left_ms == deadline.timeout_ms() && left_ms != 0 && set_patience(left_ms);
  for (bool blocking = whole;; blocking = false) {
    if (!blocking) {
      SNOW_ASSIGN(const bool ready, wait_for(fd_.get(), POLLIN, deadline));
      if (!ready) return late(deadline);
    }
    const ssize_t got = ::recv(fd_.get(), into.data(), into.size(), blocking ? 0 : MSG_DONTWAIT);
    if (got > 0) return static_cast<size_t>(got);
    if (got == 0) return fail(Code::unavailable, "the other side closed the connection");
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return fail_errno(Code::unavailable, "connection lost");
    // The socket's timeout counts in ticks and may end a little early: poll waits for the rest.
  }
}

Result<void> Socket::write_all(std::span<iovec> parts, const Deadline& deadline) {
  while (!parts.empty()) {
    if (parts.front().iov_len == 0) {
      parts = parts.subspan(1);
      continue;
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const ssize_t put = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (put < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return fail_errno(Code::unavailable, "connection lost");
      SNOW_ASSIGN(const bool ready, wait_for(fd_.get(), POLLOUT, deadline));
      if (!ready) {
        return fail(Code::timed_out, "the other side took nothing for {} ms",
                    deadline.timeout_ms());
      }
      continue;
    }
    auto done = static_cast<size_t>(put);
    while (!parts.empty() && done >= parts.front().iov_len) {
      done -= parts.front().iov_len;
      parts = parts.subspan(1);
    }
    if (done > 0) {
      parts.front().iov_base = static_cast<char*>(parts.front().iov_base) + done;
      parts.front().iov_len -= done;
    }
  }
  return {};
}

Result<bool> Socket::wait_readable(const Deadline& deadline) {
  return wait_for(fd_.get(), POLLIN, deadline);
}

bool Socket::quiet() const {
  char byte = 0;
  return ::recv(fd_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
         (errno == EAGAIN || errno == EINTR);
}

void Socket::interrupt() { ::shutdown(fd_.get(), SHUT_RDWR); }

Address Socket::local() const {
  SocketAddress address;
  address.length = sizeof address.storage;
  if (::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.length) <
      0) {
    return {};
  }
  return from_socket_address(address.storage);
}

Address Socket::remote() const {
  SocketAddress address;
  address.length = sizeof address.storage;
  if (::getpeername(fd_.get(), reinterpret_cast<sockaddr*>(&address.storage), &address.length) <
      0) {
    return {};
  }
  return from_socket_address(address.storage);
}

Result<Fd> connect_tcp(const Address& address, const Deadline& deadline) {
  SNOW_ASSIGN(const SocketAddress target, to_socket_address(address));
  Fd fd(::socket(target.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno(Code::host_failed, "cannot make a socket");
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&target.storage), target.length) < 0) {
    if (errno != EINPROGRESS) return fail_errno(Code::unavailable, "cannot connect");
    SNOW_ASSIGN(const bool ready, wait_for(fd.get(), POLLOUT, deadline));
    if (!ready) return late(deadline);
    int error = 0;
    socklen_t length = sizeof error;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length) < 0) error = errno;
    if (error != 0) {
      errno = error;
      return fail_errno(Code::unavailable, "cannot connect");
    }
  }
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK) < 0) {
    return fail_errno(Code::host_failed, "fcntl failed");
  }
  return fd;
}

Result<Fd> listen_tcp(const Address& address) {
  const std::string name = to_text(address);
  SNOW_ASSIGN(const SocketAddress place, to_socket_address(address));
  Fd fd(::socket(place.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(Code::host_failed, "{}: cannot make a socket", name);
  set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&place.storage), place.length) < 0) {
    const Code code = errno == EADDRINUSE ? Code::exists : Code::host_failed;
    return fail_errno(code, "{}: cannot listen there", name);
  }
  if (::listen(fd.get(), kBacklog) < 0) {
    return fail_errno(Code::host_failed, "{}: cannot listen there", name);
  }
  return fd;
}

}  // namespace snow::peer
