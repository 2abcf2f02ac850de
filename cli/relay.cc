#include "cli/relay.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <termios.h>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <thread>

#include "api/frame.h"

namespace snow::cli {
namespace {

constexpr char kEscape = 0x1d;  // Ctrl-]

class RawTerminal {
 public:
  explicit RawTerminal(int fd) : fd_(fd) {
    if (fd < 0 || ::tcgetattr(fd, &old_) < 0) return;
    termios raw = old_;
    ::cfmakeraw(&raw);
    changed_ = ::tcsetattr(fd, TCSADRAIN, &raw) == 0;
  }
  ~RawTerminal() {
    if (changed_) ::tcsetattr(fd_, TCSADRAIN, &old_);
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  const int fd_;
  termios old_{};
  bool changed_ = false;
};

// What the sending thread uses; it may outlive relay().
struct Sender {
  Fd socket;
  Fd signals;
  Relay options;
  std::atomic<bool> left{false};

  bool send(Channel channel, std::string_view bytes) {
    return send_frame(socket.get(), channel, bytes).has_value();
  }
  bool send_size() {
    winsize size{};
    if (::ioctl(options.input, TIOCGWINSZ, &size) < 0 || size.ws_row == 0 || size.ws_col == 0) {
      return true;
    }
    return send(Channel::control, nlohmann::json{{"resize", {size.ws_row, size.ws_col}}}.dump());
  }
  bool send_signal() {
    signalfd_siginfo info{};
    if (::read(signals.get(), &info, sizeof info) != sizeof info) return false;
    if (info.ssi_signo == SIGWINCH) return send_size();
    return send(Channel::control, nlohmann::json{{"signal", info.ssi_signo}}.dump());
  }
  // False: nothing more comes from there.
  bool send_input() {
    char buffer[16384];
    const ssize_t got = ::read(options.input, buffer, sizeof buffer);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) return true;
    std::string_view bytes(buffer, got > 0 ? static_cast<size_t>(got) : 0);
    const size_t escape = options.escape ? bytes.find(kEscape) : std::string_view::npos;
    if (escape != std::string_view::npos) {
      left = true;
      ::shutdown(socket.get(), SHUT_RDWR);
      return false;
    }
    return send(Channel::input, bytes) && !bytes.empty();  // an empty frame is the end
  }
  void run() {
    bool input_open = options.input >= 0;
    if (!input_open && !options.escape && !send(Channel::input, "")) return;
    if (options.terminal && !send_size()) return;
    for (;;) {
      pollfd polled[] = {{input_open ? options.input : -1, POLLIN, 0}, {signals.get(), POLLIN, 0}};
      if (::poll(polled, 2, -1) < 0 && errno != EINTR) return;
      if (polled[1].revents != 0 && !send_signal()) return;
      if (polled[0].revents != 0) input_open = send_input();
    }
  }
};

struct End {
  int code = 0;
};

// One frame of the daemon; an End if it was the last.
Result<std::optional<End>> take_frame(const Frame& frame, const Relay& options) {
  if (frame.channel == Channel::control) {
    const auto control = nlohmann::json::parse(frame.bytes, nullptr, false);
    if (control.is_object() && control.contains("exit") && control["exit"].is_number_integer()) {
      return std::optional<End>(End{control["exit"].get<int>()});
    }
    if (control.is_object() && control.contains("error") && control["error"].is_object()) {
      return fail(code_from_name(control["error"].value("code", "")), "{}",
                  control["error"].value("message", "unknown error"));
    }
    return fail(Code::corrupt, "stream: control frame not understood");
  }
  const int fd = frame.channel == Channel::error ? options.error : options.output;
  SNOW_TRY(write_all(fd, std::as_bytes(std::span(frame.bytes)), "output"));
  return std::optional<End>();
}

}  // namespace

Result<int> relay(Client::Stream stream, const Relay& options) {
  const bool terminal = options.terminal && ::isatty(options.input) != 0;
  sigset_t mask;
  sigemptyset(&mask);
  if (terminal) sigaddset(&mask, SIGWINCH);
  if (options.signals) {
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGTERM);
  }
  ::pthread_sigmask(SIG_BLOCK, &mask, nullptr);
  auto sender = std::make_shared<Sender>();
  sender->socket.reset(::dup(stream.fd.get()));
  sender->signals.reset(::signalfd(-1, &mask, SFD_CLOEXEC));
  sender->options = options;
  sender->options.terminal = terminal;
  const RawTerminal raw(terminal ? options.input : -1);
  // Two directions, two threads: a guest that takes no input while its output waits would
  // otherwise stop both.
  std::thread([sender] { sender->run(); }).detach();

  FrameReader frames;
  frames.feed(stream.early);
  for (;;) {
    SNOW_ASSIGN(const auto frame, frames.next());
    if (frame) {
      SNOW_ASSIGN(const auto end, take_frame(*frame, options));
      if (end) return end->code;
      continue;
    }
    char buffer[65536];
    const ssize_t got = ::recv(stream.fd.get(), buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0 && sender->left) return 0;
    if (got <= 0) {
      return fail(Code::unavailable, "the connection to snowd broke off; its log tells why");
    }
    frames.feed(std::string_view(buffer, static_cast<size_t>(got)));
  }
}

}  // namespace snow::cli
