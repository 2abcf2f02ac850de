// How a daemon reaches the keeper of a run folder, or starts one.
#pragma once

#include <sys/types.h>

#include "base/fd.h"
#include "base/result.h"
#include "keeper/client.h"

namespace snow {

struct KeeperConnection {
  Fd socket;
  Fd keeper;  // pidfd of the keeper
  pid_t pid = 0;
  bool started_now = false;
};

// Connected and greeted. Daemons that race are ordered by a lock on RUN_DIR/keeper.lock. A keeper
// that is started is in a session of its own, with RUN_DIR/keeper.log as its standard error.
Result<KeeperConnection> connect_keeper(const Keeper::Options& options);

Fd open_pidfd(pid_t pid);  // invalid, with errno, if there is no such process

// Waits until the keeper has ended, at most `timeout_ms`, and reaps it if it is our child.
bool await_keeper_end(int pidfd, int timeout_ms);

}  // namespace snow
