// snow-agent: see agent.h. No arguments in a guest; the options are for tests.
#include <getopt.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "guest/agent/agent.h"

namespace {

constexpr const char* kUsage =
    "usage: snow-agent [--port PATH|fd:N] [--cgroup-root DIR|none] [--run DIR] [--version]\n"
    "The guest's agent of Thundersnow. Without options it serves the virtio port\n"
    "org.thundersnow.agent.0 and listens on /run/snow/agent.sock.\n";

}  // namespace

int main(int argc, char** argv) {
  snow::guest::AgentOptions options;
  const option kOptions[] = {
      {"port", required_argument, nullptr, 'p'}, {"cgroup-root", required_argument, nullptr, 'c'},
      {"run", required_argument, nullptr, 'r'},  {"version", no_argument, nullptr, 'v'},
      {"help", no_argument, nullptr, 'h'},       {nullptr, 0, nullptr, 0}};
  for (int key; (key = getopt_long(argc, argv, "h", kOptions, nullptr)) != -1;) {
    switch (key) {
      case 'p':
        options.port = optarg;
        break;
      case 'c':
        options.cgroup_root = optarg;
        break;
      case 'r':
        options.paths.run = optarg;
        options.socket = std::string(optarg) + "/agent.sock";
        break;
      case 'v':
        printf("snow-agent %s\n", SNOW_VERSION);
        return 0;
      case 'h':
        fputs(kUsage, stdout);
        return 0;
      default:
        fputs(kUsage, stderr);
        return 2;
    }
  }
  (void)!chdir("/");
  umask(022);
  if (mkdir(options.paths.run.c_str(), 0755) != 0 && errno != EEXIST) {
    snow::guest::log_line(options.paths.run + ": " + snow::guest::error_text(errno));
  }
  return snow::guest::Agent(options).run();
}
