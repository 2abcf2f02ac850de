// Runs a short-lived host program (qemu-img, mount helpers) and returns what it printed.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace snow {

struct ProcessOutput {
  int exit_code = 0;  // 128 + signal if killed
  std::string standard_output;
  std::string standard_error;
};

// Runs argv[0] (found in PATH) with no standard input, waits for it, at most `timeout_ms`, after
// which it is killed and Code::timed_out returned. A non-zero exit code is not an error here.
Result<ProcessOutput> run_process(const std::vector<std::string>& argv, int timeout_ms = 60'000);

}  // namespace snow
