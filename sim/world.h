// Simulated hosts around the real decision core (exchange/core): every host has a Receiver and
// clones that read, host 0 is the origin. Deterministic: the same scenario gives the same run.
//
// What must hold is checked as it runs (world_check.cc); the first thing that does not ends the run
// and is told in Result::violation.
#pragma once

#include <bit>
#include <memory>
#include <string>
#include <vector>

#include "exchange/core/origin.h"
#include "exchange/core/page_map.h"
#include "exchange/core/receiver.h"
#include "sim/events.h"
#include "sim/scenario.h"

namespace snow::sim {

struct Result {
  std::string violation;  // empty: all held
  // Of the hosts that finished, from the start of their clones until these had read everything.
  std::vector<Nanos> done;               // sorted
  std::vector<Nanos> complete;           // sorted; with fill: until everything was there
  Nanos demand_p50 = 0, demand_p99 = 0;  // the median host's
  uint64_t origin_page_bytes = 0;        // that left it, unicast and multicast
  uint64_t origin_requests = 0;
  uint64_t distinct_bytes = 0;  // pages that anybody needed
  uint64_t moved_bytes = 0;     // received by all hosts together
  uint64_t redirects = 0, hedges = 0, coming_missed = 0, failures = 0, duplicates = 0;
  exchange::OriginCounters origin;
  uint64_t multicast_rate = 0;
  uint32_t longest_chain = 0;  // hosts that waited for each other in a row
  double origin_cpu_busy = 0;  // share of the time until the last was done
  double origin_link_busy = 0;
  uint64_t events = 0;
  uint64_t fingerprint = 0;  // of everything that happened: equal runs have equal ones
  [[nodiscard]] double amplification() const {
    return distinct_bytes == 0
               ? 0
               : static_cast<double>(origin_page_bytes) / static_cast<double>(distinct_bytes);
  }
};

class World {
 public:
  explicit World(const Scenario& scenario);
  Result run();

 private:
  enum class State : uint8_t { up, refused, silent };
  struct Reader {
    uint32_t step = 0;
    bool waiting = false;
    exchange::DemandId demand = 0;
    Run run;
    Nanos since = 0;
    bool done = false;
  };
  // A peer's request that waits for what is on its way here.
  struct Watch {
    exchange::DemandId id = 0;
    Message request;
  };
  struct Held {  // the same, seen from the other side
    HostNumber at = 0;
    exchange::DemandId watch = 0;
    Run run;
  };
  struct Host {
    std::unique_ptr<exchange::Receiver> receiver;
    uint32_t life = 1;
    State state = State::up;
    bool corrupt = false, mute = false, listening = false, hears = false;
    bool for_good = false;  // dead, and will not be back
    std::vector<Reader> readers;
    std::vector<Watch> watches;
    std::vector<Held> held;
    exchange::PageMap hashes{0};   // pages whose hash the origin told
    exchange::PageMap damaged{0};  // pages with wrong bytes that were taken for right
    Nanos tick_at = exchange::kNever;
    Nanos started = 0, done_at = -1, complete_at = -1;
    uint32_t got = 0, missed = 0;
    Nanos listen_again = 0;
    LinkSpec fast;  // its links without a fault
  };

  // world.cc
  void handle(const Event& event);
  void deliver(Message message);
  void trace(const Message& message) const;
  void apply(const Fault& fault);
  void restart(HostNumber number);
  void tell(HostNumber about, bool up, Nanos when);
  void send(Message message, uint64_t bytes);
  void fail(const std::string& text);

  // world_host.cc
  void open(HostNumber number);
  void start_host(HostNumber number);
  void advance(HostNumber number, size_t reader);
  [[nodiscard]] Run access(HostNumber number, uint32_t step) const;
  void act(HostNumber number, const exchange::Actions& actions);
  void ask(HostNumber number, const exchange::Ask& ask);
  void receive(HostNumber number, const Message& message);
  void take_pages(HostNumber number, const Message& message, exchange::Actions& out);
  void serve(HostNumber number, const Message& request);
  void answer(HostNumber number, const Message& request);
  void end_watch(HostNumber number, size_t index);
  void schedule_tick(HostNumber number);
  void note_progress(HostNumber number);
  void report_now(HostNumber number);
  void report_reception(HostNumber number);
  // Calls the core and does what it says. Nested calls each have their own Actions.
  template <class Call>
  void with_core(HostNumber number, Call&& call) {
    exchange::Actions actions;
    if (!spare_.empty()) {
      actions = std::move(spare_.back());
      spare_.pop_back();
      actions.clear();
    }
    call(actions);
    act(number, actions);
    spare_.push_back(std::move(actions));
    schedule_tick(number);
  }

  // world_origin.cc
  void start_origin();
  void origin_receive(const Message& message);
  void origin_answer(const Message& request);
  void schedule_multicast();
  void multicast_send();
  void multicast_tick();

  // world_check.cc
  void check();
  void check_host(HostNumber number);
  void check_chain(HostNumber from, HostNumber at, Run run, uint32_t depth);
  void check_end();
  Result result();

  const Scenario scenario_;
  Random random_;
  Network network_;
  EventQueue queue_;
  Nanos now_ = 0;
  std::vector<Host> hosts_;
  std::vector<Run> sequence_;  // what all clones read
  std::vector<Run> zeros_;
  exchange::PageMap zero_, needed_;
  std::unique_ptr<exchange::Origin> origin_;
  Nanos cpu_free_[2] = {0, 0};
  Nanos cpu_used_ = 0;
  Nanos multicast_at_ = exchange::kNever;
  uint64_t origin_page_bytes_ = 0, origin_requests_ = 0;
  Nanos garbled_until_ = 0;
  Nanos last_fault_ = 0;
  bool ended_ = false;  // all are done; what is in flight runs out
  uint32_t longest_chain_ = 0;
  uint64_t fingerprint_ = 0;
  std::vector<exchange::Decision> decisions_;
  std::vector<exchange::Actions> spare_;
  std::string violation_;
};

}  // namespace snow::sim
