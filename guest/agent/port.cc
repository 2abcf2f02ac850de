#include "guest/agent/port.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace snow::guest {

namespace {

constexpr int kFlags = O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;

// The port by udev's link, or by the names in sysfs when no udev made one.
Fd open_virtio_port() {
  Fd fd(open((std::string("/dev/virtio-ports/") + channel::kPortName).c_str(), kFlags));
  if (fd) return fd;
  int error = errno;
  const std::string base = "/sys/class/virtio-ports/";
  for (const std::string& port : list_directory(base)) {
    const auto name = read_small_file(base + port + "/name");
    if (!name || split(*name, '\n')[0] != channel::kPortName) continue;
    fd = Fd(open(("/dev/" + port).c_str(), kFlags));
    if (fd) return fd;
    error = errno;
  }
  errno = error;
  return Fd();
}

Fd wait_for_virtio_port() {
  for (int tries = 0;; ++tries) {
    Fd fd = open_virtio_port();
    if (fd) return fd;
    if (tries == 50) {
      log_line(std::string("waiting for the port ") + channel::kPortName + ": " +
               error_text(errno));
    }
    usleep(tries < 100 ? 50'000 : 500'000);
  }
}

Fd open_given(const std::string& where) {
  if (where.starts_with("fd:")) {
    Fd fd(atoi(where.c_str() + 3));
    fcntl(fd.get(), F_SETFD, FD_CLOEXEC);
    fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
    return fd;
  }
  struct stat status {};
  if (stat(where.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) {
    return Fd(open(where.c_str(), kFlags));
  }
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  where.copy(address.sun_path, sizeof address.sun_path - 1);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return Fd();
  return fd;
}

}  // namespace

Port::Port(Fd fd, bool ends)
    : fd_(std::move(fd)), events_(epoll_create1(EPOLL_CLOEXEC)), ends_(ends) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLET;
  if (epoll_ctl(events_.get(), EPOLL_CTL_ADD, fd_.get(), &event) != 0) {
    log_line("the port cannot be polled: " + error_text(errno));
    exit(1);
  }
  queue_.assign(1, '\0');  // ends what an earlier agent may have left half sent
}

Port Port::open(const std::string& where) {
  if (where.empty()) return Port(wait_for_virtio_port(), false);
  Fd fd = open_given(where);
  if (!fd) {
    log_line("port '" + where + "': " + error_text(errno));
    exit(1);
  }
  return Port(std::move(fd), true);
}

bool Port::service(std::vector<channel::Message>& messages) {
  epoll_event event{};
  epoll_wait(events_.get(), &event, 1, 0);  // takes the edge
  const bool there = receive(messages);
  flush();
  return there;
}

bool Port::receive(std::vector<channel::Message>& messages) {
  char buffer[32 * 1024];
  bool there = true;
  while (true) {
    const ssize_t got = read(fd_.get(), buffer, sizeof buffer);
    if (got > 0) {
      reader_.feed({buffer, static_cast<size_t>(got)}, messages);
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
      there = !ends_;
      reader_.reset();
    }
    break;
  }
  if (reader_.foreign_versions() != foreign_seen_) {
    foreign_seen_ = reader_.foreign_versions();
    send(channel::Type::refused, 0,
         channel::Fields{{"reason", "this agent speaks version " +
                                        std::to_string(channel::kVersion) + " of the channel"}});
  }
  return there;
}

void Port::send(channel::Type type, uint32_t stream, std::string payload) {
  queue_ += channel::encode_frame({type, stream, std::move(payload)});
}

void Port::flush() {
  while (sent_ < queue_.size()) {
    const ssize_t put = write(fd_.get(), queue_.data() + sent_, queue_.size() - sent_);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) break;
    sent_ += static_cast<size_t>(put);
  }
  if (sent_ == queue_.size()) {
    queue_.clear();
    sent_ = 0;
  } else if (sent_ > kQueueLimit) {
    queue_.erase(0, sent_);
    sent_ = 0;
  }
}

bool Port::flush_all(int timeout_ms) {
  const int64_t deadline = monotonic_us() + int64_t{timeout_ms} * 1000;
  for (flush(); queued() > 0; flush()) {
    const int64_t left_us = deadline - monotonic_us();
    if (left_us <= 0) return false;
    pollfd wait{fd_.get(), POLLOUT, 0};
    poll(&wait, 1, static_cast<int>(left_us / 1000 + 1));
    if ((wait.revents & POLLOUT) == 0) usleep(1000);  // HUP: no host at the moment
  }
  return true;
}

}  // namespace snow::guest
