// What is simulated: hosts and their links, what the clones read, what goes wrong and when. Made
// from a name, a seed and a number of hosts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "exchange/core/origin.h"
#include "exchange/core/receiver.h"
#include "sim/network.h"

namespace snow::sim {

struct Fault {
  enum class Kind : uint8_t {
    kill,       // the host's daemon ends; connections are refused
    power_off,  // the host is silent
    restart,    // it is back, with its cache file (the origin: with nothing but the bytes)
    partition,  // the host is in `group` from now on
    heal,       // all are in one group again
    corrupt,    // it serves wrong bytes
    mute,       // it takes requests and never answers
    slow,       // its links run at 1 Mbit/s ...
    fast,       // ... and as before
    deaf,       // multicast does not reach it any more
    garble      // the origin's next answers arrive damaged, for 50 ms
  } kind = Kind::kill;
  Nanos at = 0;
  HostNumber host = 0;
  int group = 0;
};

struct Scenario {
  std::string name;
  uint64_t seed = 1;
  std::vector<LinkSpec> links;  // host 0 is the origin
  uint32_t image_pages = 2048;

  // What clones read: `steps` runs of a sequence that all share, in the same order, and in between
  // a share of pages that only one reads. `readers` threads each.
  uint32_t steps = 400;
  uint32_t working_set_pages = 512;
  double private_share = 0.02;
  uint32_t readers = 2;
  Nanos think = 20 * exchange::kMicrosecond;
  Nanos start_spread = 5 * exchange::kMillisecond;  // clones start within this time
  double zero_share = 0.1;                          // of the image's pages

  bool hot_set = false;  // the working set is known, as for later clones
  bool fill = false;     // everything is to be fetched
  uint64_t fill_rate = 0;
  exchange::ReceiverOptions receiver;
  exchange::OriginOptions origin;
  Nanos origin_cpu = 12 * exchange::kMicrosecond;  // for a request, on each of two cores

  std::vector<Fault> faults;
  bool told = true;                      // the cluster tells who is down, up and gone
  Nanos notice = 2 * exchange::kSecond;  // that long after

  uint32_t trace_page = UINT32_MAX;  // print every message that speaks of it

  // What must hold.
  double amplification_most = 0;               // origin's bytes over distinct bytes; 0: not checked
  Nanos demand_most = 12 * exchange::kSecond;  // while the origin could be reached
  Nanos limit = 300 * exchange::kSecond;       // all must be done
};

// The names, and what they are about.
struct ScenarioName {
  std::string_view name;
  std::string_view about;
};
const std::vector<ScenarioName>& scenario_names();

// hosts: receivers, without the origin. An unknown name gives an empty name.
Scenario make_scenario(std::string_view name, uint64_t seed, uint32_t hosts);

}  // namespace snow::sim
