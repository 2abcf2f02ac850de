// snowd: reads its settings, opens the host, serves the API until SIGTERM or SIGINT. VMs go on
// without it; the next snowd takes them over.
#include <getopt.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "api/server.h"
#include "api/settings.h"
#include "api/text.h"
#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"

namespace snow {
namespace {

constexpr const char* kDefaultConfig = "/etc/snow/snowd.toml";
constexpr int kStopGraceMs = 5000;

constexpr const char* kHelp =
    "Usage: snowd [--config FILE] [--set KEY=VALUE]... [--state-dir DIR] [--run-dir DIR]\n"
    "\n"
    "  --config FILE     settings, TOML (default /etc/snow/snowd.toml, which may be missing)\n"
    "  --set KEY=VALUE   one setting; overrides the file\n"
    "  --state-dir DIR   the same as --set state_dir=DIR\n"
    "  --run-dir DIR     the same as --set run_dir=DIR\n"
    "  -v, --verbose     log more\n"
    "  --version\n"
    "\n"
    "The API's socket is RUN_DIR/api.sock. See snowd(8).\n";

struct Options {
  std::string config;
  std::vector<std::pair<std::string, std::string>> settings;
  bool verbose = false;
};

// Ends the process for --help and --version.
Result<Options> parse_options(int argc, char** argv) {
  static const option kLong[] = {{"config", required_argument, nullptr, 'c'},
                                 {"set", required_argument, nullptr, 's'},
                                 {"state-dir", required_argument, nullptr, 'S'},
                                 {"run-dir", required_argument, nullptr, 'R'},
                                 {"verbose", no_argument, nullptr, 'v'},
                                 {"version", no_argument, nullptr, 'V'},
                                 {"help", no_argument, nullptr, 'h'},
                                 {nullptr, 0, nullptr, 0}};
  Options options;
  for (int chosen = 0; (chosen = ::getopt_long(argc, argv, "vh", kLong, nullptr)) != -1;) {
    switch (chosen) {
      case 'c':
        options.config = optarg;
        break;
      case 's': {
        SNOW_ASSIGN(auto pair, parse_key_value("--set", optarg));
        options.settings.push_back(std::move(pair));
        break;
      }
      case 'S':
        options.settings.emplace_back("state_dir", optarg);
        break;
      case 'R':
        options.settings.emplace_back("run_dir", optarg);
        break;
      case 'v':
        options.verbose = true;
        break;
      case 'V':
        std::puts("snowd " SNOW_VERSION);
        std::exit(0);
      case 'h':
        std::fputs(kHelp, stdout);
        std::exit(0);
      default:
        return fail(Code::usage, "see snowd --help");
    }
  }
  if (optind < argc) return fail(Code::usage, "argument '{}': not expected", argv[optind]);
  return options;
}

Result<Settings> settings_of(const Options& options) {
  Settings settings;
  const bool named = !options.config.empty();
  const std::string path = named ? options.config : kDefaultConfig;
  if (auto read = read_settings(settings, path); !read) {
    if (named || read.error().code != Code::not_found) return tl::unexpected<Error>(read.error());
  }
  for (const auto& [key, value] : options.settings) SNOW_TRY(set_setting(settings, key, value));
  return settings;
}

// sd_notify(3): one datagram to the socket that systemd names.
void notify_systemd(std::string_view state) {
  const char* path = ::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path == nullptr || std::string_view(path).size() >= sizeof address.sun_path) return;
  const std::string_view name(path);
  name.copy(address.sun_path, name.size());
  if (address.sun_path[0] == '@') address.sun_path[0] = '\0';
  const Fd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  if (::sendto(fd.get(), state.data(), state.size(), 0, reinterpret_cast<const sockaddr*>(&address),
               size) < 0) {
    log_warn("systemd cannot be told '{}': {}", state, strerror(errno));
  }
}

Result<void> serve(const Settings& settings) {
  // Blocked before any thread is made, so that only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);

  SNOW_TRY(make_folders(settings.run_dir, 0755));
  SNOW_ASSIGN(auto host, Host::open(settings));
  Server::Options options;
  options.socket_path = settings.run_dir + "/api.sock";
  options.group = settings.api_group;
  SNOW_ASSIGN(auto server, Server::start(*host, options));
  log_info("serving {}", options.socket_path);
  notify_systemd("READY=1");

  int signal = 0;
  ::sigwait(&signals, &signal);
  log_info("{}: stopping; VMs go on", strsignal(signal));
  notify_systemd("STOPPING=1");
  if (!server->stop(kStopGraceMs)) {
    // What is under way is finished or undone by the next daemon.
    log_warn("requests are still under way after {} ms; leaving them", kStopGraceMs);
    std::fflush(nullptr);
    ::_exit(0);
  }
  return {};
}

int main_of(int argc, char** argv) {
  Result<void> served;
  if (auto options = parse_options(argc, argv); !options) {
    served = tl::unexpected<Error>(Error{Code::usage, options.error().message});
  } else {
    if (options->verbose) set_log_level(LogLevel::debug);
    if (auto settings = settings_of(*options); !settings) {
      // Bad settings are a usage error, whatever is wrong with them.
      served = tl::unexpected<Error>(Error{Code::usage, settings.error().message});
    } else {
      served = serve(*settings);
    }
  }
  if (served) return 0;
  fmt::print(stderr, "snowd: {}\n", served.error().message);
  return exit_code(served.error().code);
}

}  // namespace
}  // namespace snow

int main(int argc, char** argv) { return snow::main_of(argc, argv); }
