#include "api/stream.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <atomic>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "api/frame.h"
#include "api/request.h"
#include "base/log.h"

namespace snow {
namespace {

constexpr int kTurnMs = 200;  // how soon a client that went is noticed while the guest is silent

void send_control(int fd, const nlohmann::json& control) {
  // A client that went needs no answer.
  (void)send_frame(fd, Channel::control,
                   control.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

void send_error(int fd, const Error& error) {
  send_control(fd, {{"error", {{"code", code_name(error.code)}, {"message", error.message}}}});
}

bool client_gone(int fd) {
  pollfd polled{fd, POLLRDHUP, 0};
  return ::poll(&polled, 1, 0) > 0 && (polled.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

// The client's frames, on a thread of their own, until the client goes or a handler says stop.
class ClientReader {
 public:
  // `on_frame` returns false to stop reading.
  ClientReader(int fd, std::string early, std::function<bool(const Frame&)> on_frame)
      : fd_(fd), on_frame_(std::move(on_frame)) {
    frames_.feed(early);
    thread_ = std::thread([this] { run(); });
  }
  ~ClientReader() {
    ::shutdown(fd_, SHUT_RD);
    thread_.join();
  }
  ClientReader(const ClientReader&) = delete;
  ClientReader& operator=(const ClientReader&) = delete;

 private:
  void run() {
    char buffer[16384];
    for (;;) {
      for (;;) {
        auto frame = frames_.next();
        if (!frame) {
          log_info("stream: {}", frame.error().message);
          ::shutdown(fd_, SHUT_RDWR);
          return;
        }
        if (!*frame) break;
        if (!on_frame_(**frame)) return;
      }
      const ssize_t got = ::recv(fd_, buffer, sizeof buffer, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return;
      frames_.feed(std::string_view(buffer, static_cast<size_t>(got)));
    }
  }

  const int fd_;
  const std::function<bool(const Frame&)> on_frame_;
  FrameReader frames_;
  std::thread thread_;
};

void send_pieces(int fd, Channel channel, std::string_view bytes, bool& gone) {
  while (!bytes.empty() && !gone) {
    const std::string_view piece = bytes.substr(0, kMaxFrameBytes);
    gone = !send_frame(fd, channel, piece);
    bytes.remove_prefix(piece.size());
  }
}

// One frame of the client, for the program.
void give_frame(GuestStream& stream, const Frame& frame, std::atomic<bool>& input_open) {
  if (frame.channel == Channel::input && input_open) {
    // A program that reads no more is no error of the client's: the rest is dropped.
    if (frame.bytes.empty()) {
      (void)stream.write_eof();
      input_open = false;
    } else if (!stream.write(frame.bytes)) {
      input_open = false;
    }
  } else if (frame.channel == Channel::control) {
    const auto control = parse_control(frame.bytes);
    if (!control) return log_info("stream: {}", control.error().message);
    if (control->signal != 0) stream.send_signal(control->signal);
    if (control->rows != 0) stream.resize(control->rows, control->columns);
  }
}

}  // namespace

void serve_exec(int fd, std::string early, GuestStream& stream) {
  std::atomic<bool> input_open{true};
  ClientReader reader(fd, std::move(early), [&](const Frame& frame) {
    give_frame(stream, frame, input_open);
    return true;
  });
  bool gone = false;
  bool killed = false;
  for (;;) {
    if (!gone) gone = client_gone(fd);
    if (gone && !killed) {
      // The reader may be waiting for the program to take its input: the program's end frees it.
      stream.send_signal(SIGKILL);
      killed = true;
    }
    const auto chunk = stream.read(kTurnMs);
    if (!chunk) continue;
    if (chunk->end) break;
    send_pieces(fd, chunk->fd == 2 ? Channel::error : Channel::output, chunk->bytes, gone);
  }
  if (gone) return;
  if (const auto outcome = stream.outcome()) {
    send_control(fd, {{"exit", *outcome}});
  } else {
    send_error(fd, outcome.error());
  }
}

void serve_console(int fd, std::string early, Host::ConsoleSession& session) {
  ClientReader reader(fd, std::move(early), [&](const Frame& frame) {
    if (frame.channel != Channel::input || frame.bytes.empty()) return true;
    return session.write(frame.bytes).has_value();
  });
  bool gone = false;
  while (!gone && !client_gone(fd)) {
    const auto bytes = session.read(kTurnMs);
    if (!bytes) continue;
    if (bytes->empty()) {
      send_control(fd, {{"exit", 0}});
      return;
    }
    send_pieces(fd, Channel::output, *bytes, gone);
  }
}

}  // namespace snow
