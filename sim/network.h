// Simulated hosts' links. A host has an up link and a down link to one switch, each with a rate; a
// message occupies both, cut-through. Demands have connections of their own: beside bulk they get
// half of the link, as two TCP streams would share it, and bulk is put off by what they took.
// Unicast is TCP: loss costs time. Multicast is UDP: loss costs packets, and so does a down link
// whose buffer is full.
#pragma once

#include <cstdint>
#include <vector>

#include "exchange/core/types.h"
#include "sim/random.h"

namespace snow::sim {

using exchange::HostNumber;
using exchange::Lane;
using exchange::Nanos;
using exchange::Run;

struct LinkSpec {
  double up_bytes_per_s = 125e6;
  double down_bytes_per_s = 125e6;
  Nanos delay = 50 * exchange::kMicrosecond;  // one way
  double loss = 0;
  bool multicast = true;  // multicast reaches it
};

class Network {
 public:
  Network(std::vector<LinkSpec> links, Random random);

  // When the last byte arrives. The receiver closes the connection at `deadline` (0: never): what
  // was not sent by then is not sent any more; kNever if nothing was.
  Nanos unicast(HostNumber from, HostNumber to, uint64_t bytes, Lane lane, Nanos now,
                Nanos deadline = 0);

  // Multicast: one use of the sender's up link ...
  struct Burst {
    Nanos start = 0, end = 0;  // on the wire
    uint64_t bytes = 0;
  };
  Burst multicast(HostNumber from, uint64_t bytes, Nanos now);
  // ... and for each receiver: when it is there, which of `pages` came through (bit i), and how
  // many packets did and did not.
  struct Receipt {
    Nanos at = 0;
    uint64_t pages = 0;
    uint32_t got = 0, missed = 0;
  };
  Receipt receive(HostNumber from, HostNumber to, const Burst& burst, uint32_t pages);

  [[nodiscard]] bool reachable(HostNumber a, HostNumber b) const { return group_[a] == group_[b]; }
  void set_group(HostNumber host, int group) { group_[host] = group; }
  LinkSpec& link(HostNumber host) { return links_[host]; }
  // What waits on the up link.
  [[nodiscard]] uint64_t backlog_bytes(HostNumber host, Nanos now) const;

 private:
  // An end of a cable: until when demands and bulk occupy it.
  struct Pipe {
    Nanos demand_until = 0;
    Nanos bulk_until = 0;
  };
  struct Slot {
    Nanos start = 0, end = 0;
  };
  // end: as if it were sent to its end; the pipe is free from `until` on.
  static Slot occupy(Pipe& pipe, double rate, uint64_t bytes, Lane lane, Nanos now,
                     Nanos until = exchange::kNever);

  std::vector<LinkSpec> links_;
  std::vector<Pipe> up_, down_;
  std::vector<int> group_;
  Random random_;
};

}  // namespace snow::sim
