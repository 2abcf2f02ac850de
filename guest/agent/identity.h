// What a guest becomes after a thaw: fresh random numbers (RandomPool), the right time, then a
// hostname, machine-id and MAC of its own, the params file, hooks (become). Every step says "ok",
// "none" (nothing was asked for) or what failed; a failed step does not stop the next.
//
// The code runs cold under TCG: few system calls, no helper programs but the hooks.
// Single-threaded.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "guest/agent/util.h"
#include "guest/channel/message.h"

namespace snow::guest {

using Environment = std::map<std::string, std::string>;

struct IdentityPaths {
  std::string run = "/run/snow";  // params, env, machine-id if /etc is read-only
  std::string hooks = "/etc/snow/fork.d";
};

// The kernel's random pool. Its device stays open: to open it after a thaw costs more than the
// rest.
class RandomPool {
 public:
  RandomPool();
  // "ok", "none" (there is no entropy), or what failed.
  [[nodiscard]] std::string reseed(std::string_view entropy) const;

 private:
  Fd fd_;
  int error_ = 0;
};

// Into the report: identity, hooks, identity_us, hooks_us.
void become(const channel::Fields& resume, const IdentityPaths& paths, channel::Fields& report);

// "ok", "none" (no time was given), or what failed. Adds clock_stepped_ns if it was stepped.
std::string set_clock(std::optional<int64_t> wall_ns, channel::Fields& report);

// --env of this machine, for programs that the agent starts.
Environment environment_of(const channel::Fields& resume);

// The lines of the params file; values quoted so that a shell can source it.
std::string params_text(const channel::Fields& resume);

// "" or what failed. `mac` as aa:bb:cc:dd:ee:ff, for the first Ethernet interface. Set on the
// running interface where the driver can; else it goes down and up, and its routes are put back.
std::string set_mac(const std::string& mac);

}  // namespace snow::guest
