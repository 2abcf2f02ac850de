// A command on several VMs or hosts (Options::names).
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"
#include "cli/options.h"
#include "cli/output.h"

namespace snow::cli {

// Does it to each, also when one failed: the first failure decides the exit code. `action` takes
// the name and gives what -o json prints.
template <class Action>
int for_each(const Options& options, Action action) {
  int code = 0;
  for (const std::string& name : options.names) {
    const Result<nlohmann::json> done = action(name);
    if (!done) {
      note(done.error().message);
      if (code == 0) code = exit_code(done.error().code);
    } else if (options.format == Format::json) {
      print_object(options, *done);
    } else {
      fmt::print("{}\n", name);
    }
  }
  return code;
}

}  // namespace snow::cli
