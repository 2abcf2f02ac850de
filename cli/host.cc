// The host as a whole: its state, its events, versions.
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "api/text.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace snow::cli {
namespace {

void print_event(const Options& options, const std::string& line) {
  if (options.format == Format::json) {
    fmt::print("{}\n", line);
  } else {
    const auto event = nlohmann::json::parse(line, nullptr, false);
    if (!event.is_object()) return;
    std::string text =
        fmt::format("{:>6} {} {}", cell(event, "seq"), cell(event, "time"), cell(event, "type"));
    for (const auto& [key, value] : event.items()) {
      if (key == "seq" || key == "time" || key == "type") continue;
      text += fmt::format(" {}={}", printable(key), cell(event, key));
    }
    fmt::print("{}\n", text);
  }
  std::fflush(stdout);
}

// `snow events | head`: nothing may be printed for long, so the reader's end is asked for.
bool output_gone() {
  pollfd polled{STDOUT_FILENO, 0, 0};
  return ::poll(&polled, 1, 0) > 0 && (polled.revents & POLLERR) != 0;
}

}  // namespace

Result<int> info(const Options& options) {
  SNOW_ASSIGN(const nlohmann::json info, Client(options.socket).get("/info"));
  if (options.format != Format::table) {
    print_object(options, info, "version");
    return 0;
  }
  const auto use = [&](const char* what, bool size) {
    const auto value = [&](const char* of) {
      const auto number = info.at(of).value(what, uint64_t{0});
      return size ? format_size(number) : fmt::format("{}", number);
    };
    return fmt::format("{} of {}", value("used"), value("limits"));
  };
  print_table({"WHAT", "VALUE"},
              {{"version", cell(info, "version")},
               {"VMs", use("vms", false)},
               {"memory", use("memory", true)},
               {"vCPUs", use("vcpus", false)},
               {"clones of a fork", "up to " + cell(info, "limits.fork")},
               {"accelerator", fmt::format("{} ({})", cell(info, "accelerator.name"),
                                           cell(info, "accelerator.reason"))},
               {"QEMU", fmt::format("{} {}", cell(info, "qemu.path"), cell(info, "qemu.version"))},
               {"keeper", "pid " + cell(info, "keeper.pid")},
               {"lazyfs", cell(info, "lazyfs.mount")}});
  return 0;
}

Result<int> events(const Options& options) {
  std::string rest;
  const auto take = [&](std::string_view piece) -> Result<void> {
    rest.append(piece);
    for (size_t end = 0; (end = rest.find('\n')) != std::string::npos; rest.erase(0, end + 1)) {
      if (end > 0) {
        print_event(options, rest.substr(0, end));
      } else if (output_gone()) {
        return fail(Code::host_failed, "standard output: nobody reads it any more");
      }
    }
    return {};
  };
  SNOW_TRY(Client(options.socket).download(fmt::format("/events?after={}", options.after), take));
  note("snowd ended the stream");
  return exit_code(Code::unavailable);
}

Result<int> version(const Options& options) {
  const auto info = Client(options.socket).get("/info");
  const std::string daemon = info ? cell(*info, "version") : "";
  if (options.format == Format::json) {
    const nlohmann::json versions = {{"snow", SNOW_VERSION},
                                     {"snowd", info ? nlohmann::json(daemon) : nlohmann::json()}};
    print_object(options, versions);
  } else {
    fmt::print("snow {}\n", SNOW_VERSION);
    if (info) fmt::print("snowd {}\n", daemon);
  }
  if (!info) note(info.error().message);
  return 0;
}

}  // namespace snow::cli
