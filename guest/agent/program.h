// Starting programs for the host: users from /etc/passwd and /etc/group (a static program has no
// NSS), pipes or a terminal, a session of its own, the snow-exec cgroup. Single-threaded.
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "guest/agent/util.h"
#include "guest/channel/message.h"

namespace snow::guest {

struct User {
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups;  // supplementary, gid included
  std::string name = "root", home = "/root", shell = "/bin/sh";
};
// By name or number. nullopt: not in `passwd`. Texts of /etc/passwd and /etc/group.
std::optional<User> find_user(const std::string& name, const std::string& passwd,
                              const std::string& group);

struct Program {
  pid_t pid = -1;   // also its process group and session
  Fd in, out, err;  // the agent's ends, non-blocking; with a terminal `out` is its master side
  bool terminal = false;
};

struct StartError {
  std::string code, message;
};

using Environment = std::map<std::string, std::string>;

// `fields`: those of open kind=exec. `base`: what the environment begins with. A program that
// cannot be executed is no error here: it ends with 126 or 127 and a line on its stderr, as in a
// shell.
std::optional<StartError> start_program(const channel::Fields& fields, const Environment& base,
                                        int exec_procs_fd, Program& program);

}  // namespace snow::guest
