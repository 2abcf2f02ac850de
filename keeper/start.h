// fork, jail, exec: the start of one kept process. The keeper does not wait for it; the child tells
// a failure through a pipe that closes when exec worked.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "keeper/client.h"

namespace snow {

struct Started {
  pid_t pid = 0;
  Fd report;  // non-blocking; closed without a byte: exec worked. See parse_start_report.
};

// Makes spec.root, opens the log, forks. Only for the keeper's one thread. On an error nothing is
// left. The child joins `cgroup` ("" is none) and becomes the root of its own session.
Result<Started> start_in_jail(const SpawnSpec& spec, const std::string& cgroup);

// What a child that failed wrote into its pipe.
Error parse_start_report(const std::string& id, const std::string& report);

}  // namespace snow
