// What the origin of an image multicasts, when, and how fast; who listens and who cannot keep up.
// Part of Origin (origin.h), which decides what goes into the queue.
//
// Rate: a token bucket. Every listener reports now and then how many packets it got and missed. If
// the worst listener that counts lost more than `loss_high`, the rate is cut (at most once in
// `adapt_interval`); else it grows by a fixed step. A listener that loses more than `hopeless_loss`
// for `hopeless_time` is to leave the group (it is in `leave` of tick()) and its loss counts no
// more. If `probe_bursts` bursts were sent and `probe_time` went by without anybody having got
// anything, multicast is off, and tried again after `off_time` (listeners keep on listening).
// Until somebody has got something, nobody is told to wait for a multicast.
//
// Memory: one bit a page for "is coming", one for "was multicast", the queue (at most
// `queue_most` of sending time), some 40 bytes for each listener.
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
  Nanos duplicate_window = 20 * kMillisecond;
  uint64_t rate_most = 125'000'000;  // bytes per second
  uint64_t rate_least = 2'000'000;
  uint64_t rate_start = 50'000'000;
  double loss_high = 0.03;
  Nanos adapt_interval = 100 * kMillisecond;
  double hopeless_loss = 1.0 / 3;
  Nanos hopeless_time = 2 * kSecond;
  Nanos readmit_time = 30 * kSecond;  // one that left is not let in again earlier
  uint32_t probe_bursts = 8;
  Nanos probe_time = 500 * kMillisecond;
  Nanos off_time = 60 * kSecond;
  Nanos queue_most = 50 * kMillisecond;  // more is not queued: it goes by unicast
  uint32_t burst_bytes = 4 * 64 * 4096;  // the bucket's depth
  Nanos wait_slack = 10 * kMillisecond;  // network and receiver, in what hosts are told to wait
};

class Multicast {
 public:
  Multicast(uint32_t pages, const MulticastOptions& options);

  // False: not let in (it lost too much a short time ago). Twice is once.
  bool subscribe(HostNumber host, Nanos now);
  void unsubscribe(HostNumber host);
  // Since its last report: packets it got and packets it missed (by the sequence numbers).
  void report(HostNumber host, uint64_t got, uint64_t missed, Nanos now);

  // The next run to send, by priority; nothing: not before ready_at() (kNever: queue empty).
  std::optional<Run> next(Nanos now);
  [[nodiscard]] Nanos ready_at(Nanos now) const;
  // Ends what is due: windows, hopeless listeners, a group that nobody hears. Those in `leave` are
  // to be told to leave the group. Call it some ten times a second.
  void tick(Nanos now, std::vector<HostNumber>& leave);

  [[nodiscard]] size_t listeners() const { return listeners_.size(); }
  [[nodiscard]] bool listens(HostNumber host) const;
  [[nodiscard]] HostNumber listener(size_t index) const { return listeners_[index].host; }
  // Bytes may be multicast at the moment (it is on, and not switched off by itself).
  [[nodiscard]] bool enabled(Nanos now) const;
  // Somebody has got something: hosts may be told to wait for it.
  [[nodiscard]] bool proven() const { return proven_; }
  [[nodiscard]] uint64_t rate_bytes_per_s() const { return static_cast<uint64_t>(rate_); }

  // For Origin.
  [[nodiscard]] bool is_coming(uint32_t page) const { return coming_.test(page); }
  [[nodiscard]] bool was_sent(uint32_t page) const { return sent_.test(page); }
  [[nodiscard]] bool has_room(Lane lane, Nanos now) const;
  void queue(Run run, Lane lane, Nanos now);
  // How long a host should wait for something of this lane that is queued now.
  [[nodiscard]] Nanos wait_for(Lane lane) const;
  void expire(Nanos now);
  // Listeners that came after the page was multicast are not counted as having it.
  [[nodiscard]] uint32_t listeners_since(Nanos when) const;
  [[nodiscard]] size_t traces_of(HostNumber host) const;
  void forget_host(HostNumber host);

 private:
  struct Listener {
    HostNumber host = kNoHost;
    double loss = 0;  // smoothed
    Nanos reported = 0;
    Nanos since = 0;        // subscribed
    Nanos lossy_since = 0;  // 0: not hopeless at the moment
  };
  struct Left {
    HostNumber host = kNoHost;
    Nanos until = 0;
  };
  struct Window {
    Run run;
    Nanos until = 0;
  };

  void adapt(Nanos now);
  void refill(Nanos now);

  const MulticastOptions options_;
  PageMap coming_, sent_;
  std::vector<Listener> listeners_;
  std::vector<Left> left_;
  std::deque<Run> queues_[3];
  uint64_t queued_pages_[3] = {};
  std::deque<Window> windows_;  // sent; still "coming" until then
  double rate_;
  double tokens_ = 0;
  Nanos tokens_at_ = 0;
  Nanos adapted_at_ = 0;
  uint32_t bursts_ = 0;  // since the start or since it was switched on again
  Nanos first_burst_ = 0;
  Nanos off_until_ = 0;
  bool proven_ = false;
};

}  // namespace snow::exchange
