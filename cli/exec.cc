// Programs and consoles of guests.
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "api/frame.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/relay.h"

namespace snow::cli {
namespace {

Result<std::string> log_of(const Client& client, const std::string& vm) {
  std::string text;
  SNOW_TRY(
      client.download("/vms/" + escape(vm) + "/logs", [&](std::string_view piece) -> Result<void> {
        text.append(piece);
        return {};
      }));
  return text;
}

Result<void> print(std::string_view bytes) {
  return write_all(STDOUT_FILENO, std::as_bytes(std::span(bytes)), "output");
}

// What is there already on a console that was just opened, without waiting.
std::string received(Client::Stream& stream) {
  std::string bytes;
  FrameReader frames;
  char buffer[65536];
  for (;;) {
    frames.feed(std::exchange(stream.early, ""));
    for (auto frame = frames.next(); frame && *frame; frame = frames.next()) {
      if ((*frame)->channel == Channel::output) {
        bytes += (*frame)->bytes;
      } else {
        stream.early += encode_frame((*frame)->channel, (*frame)->bytes);
      }
    }
    if (!stream.early.empty()) return bytes;  // the end; relay() takes it
    const ssize_t got = ::recv(stream.fd.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (got <= 0) return bytes;
    stream.early.assign(buffer, static_cast<size_t>(got));
  }
}

}  // namespace

Result<int> exec(const Options& options) {
  nlohmann::json body = {{"argv", options.command}};
  if (!options.user.empty()) body["user"] = options.user;
  if (!options.directory.empty()) body["directory"] = options.directory;
  SNOW_ASSIGN(const auto environment, pairs_of("--env", options.environment));
  if (!environment.empty()) body["environment"] = environment;
  if (options.terminal) {
    body["terminal"] = true;
    winsize size{};
    if (::ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0) {
      body["rows"] = size.ws_row;
      body["columns"] = size.ws_col;
    }
  }
  SNOW_ASSIGN(auto stream,
              Client(options.socket).upgrade("/vms/" + escape(options.vm) + "/exec", body));
  Relay how;
  if (options.interactive) how.input = STDIN_FILENO;
  how.terminal = options.terminal && options.interactive;
  how.signals = true;
  return relay(std::move(stream), how);
}

Result<int> console(const Options& options) {
  SNOW_ASSIGN(auto stream,
              Client(options.socket)
                  .upgrade("/vms/" + escape(options.vm) + "/console", nlohmann::json::object()));
  note(fmt::format("console of '{}'; Ctrl-] leaves it", options.vm));
  Relay how;
  how.input = STDIN_FILENO;
  how.terminal = true;
  how.escape = true;
  SNOW_ASSIGN(const int code, relay(std::move(stream), how));
  note("left the console");
  return code;
}

Result<int> logs(const Options& options) {
  const Client client(options.socket);
  if (!options.follow) {
    SNOW_ASSIGN(const std::string text, log_of(client, options.vm));
    SNOW_TRY(print(text));
    return 0;
  }
  // The console is opened first, so that nothing is lost between the log and what follows; what
  // came in between is in both, and left out of the second.
  SNOW_ASSIGN(auto stream,
              client.upgrade("/vms/" + escape(options.vm) + "/console", nlohmann::json::object()));
  SNOW_ASSIGN(const std::string text, log_of(client, options.vm));
  std::string fresh = received(stream);
  for (size_t both = std::min(fresh.size(), text.size()); both > 0; --both) {
    if (text.ends_with(std::string_view(fresh).substr(0, both))) {
      fresh.erase(0, both);
      break;
    }
  }
  SNOW_TRY(print(text));
  SNOW_TRY(print(fresh));
  return relay(std::move(stream), Relay{});
}

}  // namespace snow::cli
