// An upgraded connection joined to this process's descriptors: standard input to the guest, its
// output to standard output and error, the terminal's size and signals along with it.
#pragma once

#include "base/result.h"
#include "cli/client.h"

namespace snow::cli {

struct Relay {
  int input = -1;  // -1: the guest's input is ended at once
  int output = 1;
  int error = 2;
  bool terminal = false;  // `input` is made raw and its size goes along, if it is a terminal
  bool escape = false;    // Ctrl-] ends the connection
  bool signals = false;   // SIGINT and SIGTERM go to the guest's program instead of this one
};

// Until the guest's end or the escape. The exit code (0 after the escape), or the guest's error.
// The thread that reads `input` may still be waiting when this returns: the process is to end.
Result<int> relay(Client::Stream stream, const Relay& options);

}  // namespace snow::cli
