// On which hosts new VMs go. A pure function of what is known of the hosts: the same input gives
// the same answer. Only a proposal: each host decides again when it is asked to reserve.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "cluster/values.h"

namespace snow {

struct PlacementPolicy {
  enum class Kind {
    local,   // only on `here`
    pack,    // on `here` first, then on as few others as possible
    spread,  // evenly over all
    named,   // evenly over `hosts`
  };
  Kind kind = Kind::local;
  std::vector<std::string> hosts;  // ids or names
};

struct PlacementDemand {
  unsigned count = 1;         // as many as there is room for, ...
  unsigned minimum = 0;       // ... but not fewer than this (0: all of them)
  uint64_t memory_bytes = 0;  // of one
  unsigned cpus = 1;          // of one
  std::string accelerator;    // empty: any
  std::string qemu;           // empty: any
};

struct PlacementHost {
  std::string id;
  std::string name;
  bool live = false;  // registered, and its record can be read
  bool drain = false;
  Resources capacity;
  Resources used;
  std::string accelerator;
  std::string qemu;
};

struct Placement {
  std::string host;  // id
  unsigned count = 0;
  bool operator==(const Placement&) const = default;
};

// By host id, none with count 0; together at most demand.count. Code::invalid: count of 0, minimum
// above count, named without hosts; Code::not_found: a named host is unknown; Code::no_room: less
// than the minimum fits, with what each host has.
Result<std::vector<Placement>> place(const PlacementPolicy& policy, const PlacementDemand& demand,
                                     const std::string& here,
                                     const std::vector<PlacementHost>& hosts);

}  // namespace snow
