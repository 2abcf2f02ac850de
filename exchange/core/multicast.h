// What the origin of an image multicasts, when, and how fast; who listens and who cannot keep up.
// Part of Origin (origin.h), which decides what goes into the queue.
//
// Rate: a token bucket. Every listener reports now and then how many packets it got and missed. If
// the worst listener lost more than `loss_high`, the rate is cut (at most once in
// `adapt_interval`); else it grows by a fixed step. Loss that does not fall when the rate does is
// the network's own and is allowed for.
// A listener that loses more than `hopeless_loss` for `hopeless_time`, or hears nothing at all
// while others do, is to leave the group (`leave` of tick()): it gets unicast and slows nobody.
// Only a listener that has got something is told to wait for a multicast. If `probe_bursts` were
// sent and after `probe_time` nobody has got anything, multicast is off for `off_time`.
//
// Memory: three bits and two bytes a page, the queue (at most `queue_most` of sending time), some
// 50 bytes for each listener.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "exchange/core/page_map.h"
#include "exchange/core/types.h"

namespace snow::exchange {

struct MulticastOptions {
  bool on = false;
  uint32_t hearing_least = 2;  // with fewer that hear it nothing is sent
  Nanos duplicate_window = 20 * kMillisecond;
  uint64_t rate_most = 125'000'000;  // bytes per second
  uint64_t rate_least = 2'000'000;
  uint64_t rate_start = 50'000'000;
  double loss_high = 0.03;
  Nanos adapt_interval = 100 * kMillisecond;
  double hopeless_loss = 1.0 / 3;
  Nanos hopeless_time = 2 * kSecond;
  Nanos readmit_time = 30 * kSecond;  // one that had to leave is not let in again earlier
  uint32_t probe_bursts = 8;
  Nanos probe_time = 500 * kMillisecond;
  Nanos off_time = 60 * kSecond;
  Nanos queue_most = 200 * kMillisecond;  // more is not queued: it goes by unicast
  Nanos queue_most_demand = 10 * kMillisecond;
  uint32_t burst_bytes = 4 * 64 * 4096;  // the bucket's depth
  // Network and receiver, in what hosts are told to wait; bulk waits four times as long.
  Nanos wait_slack = 5 * kMillisecond;
};

class Multicast {
 public:
  Multicast(uint32_t pages, const MulticastOptions& options);

  // False: not let in (it had to leave a short time ago). Twice is once.
  bool subscribe(HostNumber host, Nanos now);
  void unsubscribe(HostNumber host);
  // Since its last report: packets it got and packets it missed (by the sequence numbers;
  // announcements count). Some ten times a second, and at once when it has got its first packet.
  void report(HostNumber host, uint64_t got, uint64_t missed, Nanos now);

  // The next run to send, by priority, and it counts as sent; nothing: not before ready_at(). A run
  // of 0 pages is an announcement alone: somebody joined, and is to find out whether he hears.
  std::optional<Run> next(Nanos now);
  // kNever: the queue is empty.
  [[nodiscard]] Nanos ready_at(Nanos now) const;
  // Ends what is due: hopeless listeners, a group that nobody hears. Those in `leave` are to be
  // told to leave the group. Call it some ten times a second.
  void tick(Nanos now, std::vector<HostNumber>& leave);

  [[nodiscard]] size_t listeners() const { return listeners_.size(); }
  [[nodiscard]] size_t hearing() const { return hearing_; }  // listeners that have got something
  [[nodiscard]] bool listens(HostNumber host) const { return slot(host) != nullptr; }
  [[nodiscard]] bool hears(HostNumber host) const;
  [[nodiscard]] HostNumber listener(size_t index) const { return listeners_[index].host; }
  // It is on, and not switched off by itself at the moment.
  [[nodiscard]] bool enabled(Nanos now) const { return options_.on && now >= off_until_; }
  [[nodiscard]] uint64_t rate_bytes_per_s() const { return static_cast<uint64_t>(rate_); }

  // For Origin. Coming: in the queue, or sent within the window.
  [[nodiscard]] bool is_coming(uint32_t page) const { return on() && coming_.test(page); }
  [[nodiscard]] bool was_sent(uint32_t page) const { return on() && sent_.test(page); }
  // The host had joined when the page was sent (as far as 65,535 joins can be told apart): it has
  // it, or missed it. Stays true when it leaves.
  [[nodiscard]] bool heard(HostNumber host, uint32_t page) const;
  // listener(0) up to this one had joined when the page was sent.
  [[nodiscard]] size_t listeners_before(uint32_t page) const;
  [[nodiscard]] bool has_room(Lane lane) const;
  void queue(Run run, Lane lane);
  // It is coming, and now a demand waits for it: ahead of bulk.
  void hurry(Run run);
  // How long a host should wait for something of this lane that is queued now.
  [[nodiscard]] Nanos wait_for(Lane lane) const;
  void expire(Nanos now);             // windows
  void note_missed(HostNumber host);  // it asks again
  void forget_host(HostNumber host);
  [[nodiscard]] size_t traces_of(HostNumber host) const;

 private:
  struct Listener {
    HostNumber host = kNoHost;
    bool hears = false;
    uint32_t missed_in_a_row = 0;
    double loss = 0;  // smoothed
    Nanos reported = INT64_MIN;
    Nanos since = 0;      // subscribed
    uint16_t joined = 0;  // as in joined_
    Nanos lossy_since = kNever;
  };
  struct Left {
    HostNumber host = kNoHost;
    Nanos until = 0;
  };
  struct Window {
    Run run;
    Nanos until = 0;
  };

  [[nodiscard]] bool on() const { return options_.on; }  // else the maps are empty
  [[nodiscard]] const Listener* slot(HostNumber host) const;
  Listener* slot(HostNumber host);
  void set_hears(Listener& listener, bool hears);
  void adapt(Nanos now);
  void refill(Nanos now);
  [[nodiscard]] double queued_bytes(Lane lane) const;  // ahead of what is queued at its end now
  void drop_queue();
  void number_slots();

  const MulticastOptions options_;
  PageMap coming_, sent_;
  PageMap urgent_;                    // in the demands' queue, and perhaps in another as well
  std::vector<uint16_t> sent_after_;  // by page: how many had joined when it was sent
  std::vector<uint16_t> joined_;      // by host number: its place among all who joined, 0: never
  uint16_t joins_ = 0;                // saturates
  std::vector<Listener> listeners_;   // in the order of joined
  std::vector<int32_t> slots_;        // by host number, -1: does not listen
  size_t hearing_ = 0;
  std::vector<Left> left_;
  std::deque<Run> queues_[3];
  uint64_t queued_pages_[3] = {};
  std::deque<Window> windows_;
  double rate_;
  bool cut_before_ = false;
  bool hello_due_ = false;
  double tokens_ = 0;
  Nanos tokens_at_ = INT64_MIN;
  Nanos adapted_at_ = INT64_MIN;
  double base_loss_ = 0;  // what the network loses at any rate
  double loss_at_cut_ = 0;
  uint32_t bursts_ = 0;  // since the start or since it was switched on again
  Nanos first_burst_ = 0;
  Nanos off_until_ = INT64_MIN;
};

}  // namespace snow::exchange
