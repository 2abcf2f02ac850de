#include "api/forward_stream.h"

#include <poll.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "api/forward_message.h"
#include "api/frame.h"
#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"
#include "peer/deadline.h"

namespace snow::forward {
namespace {

constexpr int kTurnMs = 200;
constexpr int kFrameMs = 30'000;               // for a frame that has begun to arrive
constexpr int kEndMs = 1000;                   // to send the last frame
constexpr int64_t kPartingNs = 2'000'000'000;  // for the other side to end as well

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Sends what comes from the socket as pieces, until it ends or the connection does.
void send_pieces(int fd, std::string early, peer::Connection& connection) {
  std::string_view left = early;
  while (!left.empty()) {
    const std::string_view piece = left.substr(0, kPieceBytes);
    if (!connection.send(kPiece, bytes_of(piece), peer::kForever)) return;
    left.remove_prefix(piece.size());
  }
  std::vector<char> buffer(kPieceBytes);
  for (;;) {
    const ssize_t got = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return;
    const std::string_view piece(buffer.data(), static_cast<size_t>(got));
    if (!connection.send(kPiece, bytes_of(piece), peer::kForever)) return;
  }
}

// All of it to our end of the pair. A program that takes no input makes this wait; who asked may
// go meanwhile, which shows on the connection's own socket. False: one of the two is gone.
bool feed(int fd, std::span<const std::byte> bytes, const peer::Connection& connection,
          const std::atomic<bool>& stopping) {
  while (!bytes.empty()) {
    const ssize_t put = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (put > 0) {
      bytes = bytes.subspan(static_cast<size_t>(put));
      continue;
    }
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && errno != EAGAIN) return false;
    pollfd polled[2] = {{fd, POLLOUT, 0}, {connection.fd(), POLLRDHUP, 0}};
    ::poll(polled, 2, kTurnMs);
    if ((polled[1].revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0 || stopping) return false;
  }
  return true;
}

bool has_hung_up(int fd) {
  pollfd polled{fd, POLLRDHUP, 0};
  return ::poll(&polled, 1, 0) > 0 && (polled.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

struct Parting {
  std::atomic<bool> over{false};
  int64_t since_ns = 0;
  // True when the other side has had its time after `over`, or after `gone` at the first call.
  bool passed(bool gone = false) {
    if (!over && !gone && since_ns == 0) return false;
    if (since_ns == 0) since_ns = monotonic_ns();
    return monotonic_ns() - since_ns > kPartingNs;
  }
};

}  // namespace

void serve_upgraded(peer::Connection& connection,
                    const std::function<void(int, std::string)>& upgraded,
                    const std::atomic<bool>& stopping) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
    log_error("socketpair: {}", strerror(errno));
    return connection.interrupt();
  }
  const Fd ours(pair[0]), theirs(pair[1]);
  connection.allow_duplex();
  Parting parting;
  std::thread session([&] {
    try {
      upgraded(theirs.get(), "");
    } catch (const std::exception& exception) {
      log_error("stream: {}", exception.what());
    }
    ::shutdown(theirs.get(), SHUT_RDWR);
  });
  std::thread out([&] {
    send_pieces(ours.get(), "", connection);
    ::shutdown(ours.get(), SHUT_RDWR);
    (void)connection.send(peer::kEnd, {}, kEndMs);
    parting.over = true;
  });
  std::vector<std::byte> piece;
  while (!stopping && !parting.passed()) {
    const auto ready = connection.wait(kTurnMs);
    if (!ready) break;
    if (!*ready) continue;
    const auto type = connection.receive_into(piece, kFrameMs);
    if (!type || *type != kPiece) break;
    // What comes after the program's end is dropped.
    if (!feed(ours.get(), piece, connection, stopping) && !parting.over) {
      if (has_hung_up(connection.fd()) || stopping) break;
    }
  }
  ::shutdown(ours.get(), SHUT_RDWR);
  session.join();
  connection.interrupt();
  out.join();
}

void relay_upgraded(int fd, std::string early, peer::Connection& connection,
                    const std::function<Result<void>()>& is_live) {
  connection.allow_duplex();
  Parting parting;
  std::thread in([&] {
    send_pieces(fd, std::move(early), connection);
    parting.over = true;
    (void)connection.send(peer::kEnd, {}, kEndMs);
  });
  FrameReader frames;
  std::vector<std::byte> piece;
  Result<void> state;
  bool ended = false;
  // The client is looked at, too: while the host takes nothing, `in` would not notice that it went.
  while (state && !ended && !parting.passed(has_hung_up(fd))) {
    const auto ready = connection.wait(kTurnMs);
    if (!ready || !*ready) {
      state = ready ? is_live() : tl::unexpected<Error>(ready.error());
      continue;
    }
    const auto type = connection.receive_into(piece, kFrameMs);
    if (!type) {
      state = tl::unexpected<Error>(type.error());
    } else if (*type == peer::kEnd) {
      ended = true;
    } else if (*type == kPiece) {
      // Whole frames only, so that the client can be told of a loss at any moment.
      frames.feed({reinterpret_cast<const char*>(piece.data()), piece.size()});
      for (;;) {
        auto frame = frames.next();
        if (!frame) state = tl::unexpected<Error>(frame.error());
        if (!frame || !*frame) break;
        (void)send_frame(fd, (*frame)->channel, (*frame)->bytes);
      }
    }
  }
  if (!ended) {
    // A host that takes nothing must see the end all the same: a reset overtakes what waits.
    const linger now{1, 0};
    ::setsockopt(connection.fd(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }
  if (!state && !parting.over) {
    const nlohmann::json control = {
        {"error", {{"code", code_name(state.error().code)}, {"message", state.error().message}}}};
    (void)send_frame(fd, Channel::control,
                     control.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }
  ::shutdown(fd, SHUT_RD);
  connection.interrupt();
  in.join();
}

}  // namespace snow::forward
