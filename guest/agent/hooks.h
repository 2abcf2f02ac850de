// The user's own steps after a thaw: executables in a folder, run in the order of their names.
#pragma once

#include <map>
#include <string>

namespace snow::guest {

inline constexpr int kHookTimeoutMs = 10'000;  // then its process group is killed

// Result: "none", "ok", or what failed, for all of them. Needs SIGCHLD blocked; reaps only its own.
// Hooks run while the user's processes still stand frozen: one that waits for such a process is
// killed after its time.
std::string run_hooks(const std::string& folder,
                      const std::map<std::string, std::string>& environment);

}  // namespace snow::guest
