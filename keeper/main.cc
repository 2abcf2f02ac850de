// snow-keeper RUN_DIR: holds what must outlive the daemon (keeper/client.h says what and why). It
// is started by the daemon's Keeper::connect, with its log as standard error; it does not change
// its files, read a configuration, or talk to anybody but one daemon on RUN_DIR/keeper.sock.
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "base/log.h"
#include "keeper/server.h"

namespace {

// SIGTERM ends it in good order; what a terminal or a dead peer may send does not.
snow::Fd set_up_signals() {
  for (const int signal : {SIGPIPE, SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2}) {
    ::signal(signal, SIG_IGN);
  }
  sigset_t watched;
  sigemptyset(&watched);
  sigaddset(&watched, SIGCHLD);
  sigaddset(&watched, SIGTERM);
  ::sigprocmask(SIG_SETMASK, &watched, nullptr);
  return snow::Fd(::signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK));
}

void ask_oom_killer_to_spare_us() {
  const snow::Fd fd(::open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC));
  if (!fd || ::write(fd.get(), "-1000", 5) != 5) {
    snow::log_warn("not protected from the OOM killer: {}", strerror(errno));
  }
}

}  // namespace

int main(int argc, char** argv) {
  char run_dir[PATH_MAX];
  if (argc != 2 || ::realpath(argv[1], run_dir) == nullptr) {
    std::fprintf(stderr, "usage: snow-keeper RUN_DIR (an existing folder)\n");
    return snow::exit_code(snow::Code::usage);
  }
  snow::Fd signals = set_up_signals();
  if (!signals || ::chdir("/") < 0) {
    snow::log_error("cannot start: {}", strerror(errno));
    return snow::exit_code(snow::Code::host_failed);
  }
  ask_oom_killer_to_spare_us();
  auto server = snow::KeeperServer::open(run_dir, std::move(signals));
  if (!server) {
    snow::log_error("{}", server.error().message);
    return snow::exit_code(server.error().code);
  }
  snow::log_info("keeper {} serves {}", ::getpid(), run_dir);
  (*server)->run();
  return 0;
}
