// The receiver's half of the decision core: for one image, which pages are here, what to ask, of
// whom, when to ask somebody else as well, and whom to wake.
//
// Order of sources for a page: it is here; it is on its way; the hosts that the origin's redirect
// named; the origin. A page without a source stays wanted and the origin is tried again (100 ms to
// 2 s apart): a demand never fails. Whatever happens, every ask has a deadline, so no wait is for
// ever while a source lives.
//
// How it is driven:
//   - A reader calls want(). It is told `present`, or `ask` (exactly one Ask, to be done by the
//     calling thread itself: no hand-over), or `wait`. Unless `present`, it sleeps until its
//     DemandId is in some call's Actions::arrived (which may be its own call of pages()).
//   - Whoever does an Ask tells how it went, by its AskId: any number of pages/zeros/redirect/
//     coming/retry/absent/wrong, each for a part of the ask's run, then finished(); or unknown()
//     or failed(), which end it at once. An AskId that the core has given up meanwhile (hedge,
//     deadline, host down) is fine: pages that come late are kept, the rest is ignored.
//   - tick() at or after next_tick(); it costs little when nothing is due.
//   - Each of these appends to Actions. All of them must be carried out, by any thread, in any
//     order. An Ask whose `demand` is the id of a reader that is in the exchange anyway (it just
//     got a redirect) is best done by that reader.
//
// Bytes are the caller's: pages() and unasked() are called after the checksum, after the hashes if
// they came from another host than the origin (a redirect carries them), and after the bytes are
// where a reader finds them.
//
// Not thread-safe; no call blocks. Cost: want() of one absent page well under a microsecond, no
// allocation once warm. Memory: 4 bits a page (128 KiB per GiB of image), some 100 bytes for each
// ask in flight.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "exchange/core/latency.h"
#include "exchange/core/page_map.h"
#include "exchange/core/types.h"

namespace snow::exchange {

using AskId = uint64_t;     // never 0, never used again
using DemandId = uint64_t;  // likewise; a reader or a serving thread that sleeps
inline constexpr size_t kMaxCandidates = 4;

// FETCH `run` of `host`.
struct Ask {
  AskId id = 0;
  HostNumber host = kNoHost;
  Run run;
  Lane lane = Lane::demand;
  Nanos deadline = 0;        // no answer by then: failed(id)
  bool no_redirect = false;  // to the origin: give the bytes
  bool again = false;        // to the origin: these pages were said to be coming and did not
  bool no_wait = false;      // to a peer: answer with what is there now, do not wait for more
  DemandId demand = 0;       // the reader it is for; 0: bulk, or several
};

// What the origin should know of another host (it redirects less to that one).
struct Report {
  enum class Kind : uint8_t { wrong, slow } kind = Kind::wrong;
  HostNumber host = kNoHost;
};

// What is to be done. The caller clears it before it is used again.
struct Actions {
  std::vector<Ask> asks;
  // Wake these: all of their run is here, or, for a watch of serve(), what lacks is not on its way
  // any more. The id is done with.
  std::vector<DemandId> arrived;
  std::vector<Report> reports;  // to be told to the origin some time
  void clear() {
    asks.clear();
    arrived.clear();
    reports.clear();
  }
};

struct Want {
  enum class State : uint8_t { present, ask, wait } state = State::present;
  DemandId demand = 0;  // unless present
  Ask ask;              // if state is ask
};

// What another host gets that was sent here by a redirect.
struct Serve {
  enum class State : uint8_t {
    all,   // everything is here
    wait,  // what lacks is on its way: `watch` will be in Actions::arrived; cancel() it at the
           // deadline and answer with what is there then
    part   // answer with what is there; the rest is ABSENT
  } state = State::all;
  DemandId watch = 0;
};

struct ReceiverOptions {
  // In flight at a time, hot and background together, and while a demand waits.
  uint32_t bulk_window_runs = 16;
  uint32_t bulk_window_pages = 1024;
  uint32_t bulk_window_pages_busy = 128;
  uint64_t background_bytes_per_s = 0;   // 0: no limit. Hot pages are not limited.
  Nanos hedge_least = 4 * kMillisecond;  // a demand is not hedged earlier
  uint32_t hedge_p95_multiple = 3;
  Nanos demand_timeout = 1 * kSecond;  // of one ask; both grow where the link proves to be slow
  Nanos bulk_timeout = 5 * kSecond;
  Nanos backoff_least = 100 * kMillisecond;  // between tries of an origin that does not answer
  Nanos backoff_most = 2 * kSecond;
  uint32_t near_blocks = 4;  // background fill goes on so far behind a demanded page first
};

struct ReceiverCounters {
  uint64_t demands = 0;         // calls of want() that were not `present`
  uint64_t demands_waited = 0;  // of these: already on its way
  uint64_t asks[3] = {};        // by lane
  uint64_t hedges = 0;
  uint64_t pages_origin = 0, pages_peer = 0, pages_unasked = 0;  // new pages by source
  uint64_t duplicates = 0;                                       // pages that were here already
  uint64_t redirects = 0, retries = 0, failures = 0, wrong = 0;
  uint64_t coming_missed = 0;  // multicasts that were waited for and did not come
};

// For people: what waits, since when, for whom.
struct Waiting {
  Run run;
  Nanos since = 0;
  HostNumber host = kNoHost;  // kNoHost: no source at the moment (it waits for the origin)
};

class Receiver {
 public:
  // `pages`: of the image. `origin`: may change later (set_origin).
  Receiver(uint32_t pages, HostNumber origin, const ReceiverOptions& options);

  // At the start or after a restart, before the first want(): what is in the cache file. Quiet.
  void set_present(Run run);
  // Likewise, if this host may have asked for the image before (an earlier daemon, another layer):
  // the origin may count it among those that have a page, and others may wait here for it. So this
  // one must not wait at them. It asks as one that asks again.
  void set_asked_before();
  // Ahead of demand, in lane `hot`, by the next tick(). The run may have any length, here and in
  // zeros(), set_present() and unasked().
  void set_hot(Run run);
  // No longer here (evicted, or the disk did not take it): asked for again when it is wanted. Pages
  // that are zeros stay. Quiet.
  void drop(Run run);
  // Fetches everything else too (or stops to), by the next tick(). `bytes_per_s` 0: no limit.
  void set_fill(bool on, uint64_t bytes_per_s);
  void set_origin(HostNumber origin, Nanos now, Actions& out);

  // A demand for 1 to kMaxRunPages pages within the image. If several pieces of it are neither here
  // nor on their way, the first is in Want::ask and the others in out.asks.
  Want want(Run run, Nanos now, Actions& out);
  // The reader or server does not wait any more (its deadline, or the daemon stops). Its id is not
  // in any Actions from now on. What was asked for it is still welcome.
  void cancel(DemandId demand);
  // Another host asks for `run`; `no_wait` as in its ask. Answers are never waited for in a circle:
  // the origin sends a host only to hosts that asked before it.
  Serve serve(Run run, bool no_wait, Nanos now);

  // Answers. `run` lies within the ask's run; a part outside is ignored.
  void pages(AskId ask, Run run, Nanos now, Actions& out);
  // Pages that are zeros, by an answer or by the origin's zero map. Not counted as traffic.
  void zeros(Run run, Nanos now, Actions& out);
  void redirect(AskId ask, Run run, std::span<const HostNumber> hosts, bool no_wait, Nanos now,
                Actions& out);
  // A multicast will bring it within `wait`; else it is asked again.
  void coming(AskId ask, Run run, Nanos wait, Nanos now, Actions& out);
  void retry(AskId ask, Run run, Nanos after, Nanos now, Actions& out);
  void absent(AskId ask, Run run, Nanos now, Actions& out);
  // Checksum or hash did not match. A peer is not asked for this image again, and reported.
  void wrong(AskId ask, Run run, Nanos now, Actions& out);
  // The answer is over; what it did not speak of is asked again.
  void finished(AskId ask, Nanos now, Actions& out);
  // The host does not know the image.
  void unknown(AskId ask, Nanos now, Actions& out);
  // Not sent, connection lost, or no answer by the deadline.
  void failed(AskId ask, Nanos now, Actions& out);

  // Verified pages that came without being asked for (multicast). Any length.
  void unasked(Run run, Nanos now, Actions& out);

  // What is known of hosts. Down: asks of it are given up at once. Up: what waited for it goes on
  // at once. Both optional: without them deadlines and backoff do it, only slower.
  void host_down(HostNumber host, Nanos now, Actions& out);
  void host_up(HostNumber host, Nanos now, Actions& out);
  // The number may be given to another host: nothing of this one is left (as host_down before).
  void forget_host(HostNumber host, Nanos now, Actions& out);

  void tick(Nanos now, Actions& out);
  // When tick() has something to do, kNever if nothing is due.
  [[nodiscard]] Nanos next_tick() const;

  [[nodiscard]] bool present(uint32_t page) const { return present_.test(page); }
  [[nodiscard]] bool present(Run run) const { return present_.all(run); }
  [[nodiscard]] bool zero(uint32_t page) const { return zero_.test(page); }
  [[nodiscard]] uint32_t pages_total() const { return present_.size(); }
  [[nodiscard]] uint32_t pages_present() const { return present_.count(); }
  // Nothing is missing: the origin is not needed any more.
  [[nodiscard]] bool complete() const { return pages_present() == pages_total(); }
  // All of the hot set is here (true if there is none).
  [[nodiscard]] bool hot_complete() const { return hot_left_ == 0; }
  [[nodiscard]] HostNumber origin() const { return origin_; }
  [[nodiscard]] const ReceiverCounters& counters() const { return counters_; }
  // From want() to arrival.
  [[nodiscard]] const Latency& demand_latency() const { return demand_latency_; }
  [[nodiscard]] std::vector<Waiting> waiting() const;
  [[nodiscard]] size_t in_flight() const { return transfers_.size(); }
  [[nodiscard]] size_t demands_waiting() const { return demands_.size(); }

 private:
  // Pages on their way, or about to be: asked of a host, said to be coming, or to be asked later.
  struct Transfer {
    AskId id = 0;
    Run run;
    uint64_t open = 0;  // bit i: page run.first + i is still awaited from this one
    enum class State : uint8_t { asked, coming, later } state = State::asked;
    Lane lane = Lane::demand;
    HostNumber host = kNoHost;
    bool no_redirect = false;
    bool again = false;
    bool missed = false;      // it was said to be coming, and had not come in time
    bool no_wait = false;     // for the candidates
    bool for_origin = false;  // state later: goes on as soon as the origin answers
    bool sampled = false;     // its latency was taken
    bool hedged = false;      // somebody else was asked too: nobody relies on this one any more
    uint8_t candidates = 0;   // how many are left in hosts
    uint8_t failures = 0;
    std::array<HostNumber, kMaxCandidates> hosts{};
    DemandId demand = 0;
    Nanos sent = 0;
    Nanos until = 0;  // deadline, or when the multicast is missed, or when to ask
  };
  struct Demand {
    DemandId id = 0;
    Run run;
    Nanos since = 0;
    Nanos hedge_at = kNever;
    bool watch = false;  // of serve(): asks for nothing itself
  };
  struct Near {
    uint32_t block = 0;
    uint32_t left = 0;
  };
  struct Shunned {
    HostNumber host = kNoHost;
    Nanos until = 0;  // kNever: gave wrong bytes
  };

  // receiver.cc
  uint32_t mark(Run run);  // sets the bits; how many are new
  void arrived(Run run, Nanos now, Actions& out);
  [[nodiscard]] uint64_t missing(Run run) const;
  // Of `mask` (bit i: page first + i), what is neither here nor on its way. What counts as on its
  // way: all, or not what is only to be asked later, or not what was hedged.
  enum class Cover : uint8_t { any, soon, not_hedged };
  [[nodiscard]] uint64_t uncovered(uint32_t first, uint64_t mask, Cover cover) const;
  [[nodiscard]] bool wanted_by_demand(Run run) const;
  void release_watches(Actions& out);
  void steal(Run run);

  // receiver_answers.cc
  Transfer* find(AskId ask);
  void remove(Transfer& transfer);
  // Takes the open pages of `run` off a transfer, to treat them differently; false: there are none.
  bool split(AskId ask, Run run, Transfer& part);
  void sample(Transfer& transfer, Nanos now);
  void learn_patience(Run run);

  // receiver_sources.cc
  Ask send(Transfer transfer, Nanos now);  // enters it and tells what to send
  Ask ask_origin(Run run, Lane lane, DemandId demand, Nanos now);
  // The part has no source any more: the next candidate, or the origin, or later.
  void next_source(Transfer part, Nanos now, Actions& out);
  void lose(Transfer part, Nanos now, Actions& out);  // its host failed it
  void park(const Transfer& part, Nanos until, bool for_origin);
  void origin_failed(Nanos sent, Nanos now);
  void origin_answered(Nanos now, Actions& out);
  void release_parked(Nanos now, Actions& out);
  [[nodiscard]] bool origin_usable(Nanos now) const { return now >= origin_retry_; }
  void shun(HostNumber host, Nanos until);
  [[nodiscard]] bool shunned(HostNumber host, Nanos now) const;
  void learn();  // from the latencies so far
  [[nodiscard]] Nanos timeout(Lane lane, uint8_t failures) const;
  void hedge(size_t demand, Nanos now, Actions& out);
  void expire(Nanos now, Actions& out);

  // receiver_bulk.cc
  void pump(Nanos now, Actions& out);
  bool next_bulk(Run& run, Lane& lane, Nanos now);
  [[nodiscard]] bool pick(uint32_t block, uint64_t of, uint32_t most, Run& run) const;
  void note_near(Run run);
  void refill(Nanos now);

  const ReceiverOptions options_;
  HostNumber origin_;
  PageMap present_, zero_, hot_;
  PageMap asked_;  // of the origin, which may have redirected: it counts us as having them
  uint32_t hot_left_ = 0;
  std::vector<Transfer> transfers_;  // no order
  std::vector<Demand> demands_;      // no order
  uint64_t last_id_ = 0;
  std::vector<Shunned> shunned_;
  Latency ask_latency_{512};   // of demands' asks that brought pages: for hedging
  Latency bulk_latency_{512};  // likewise of bulk: for deadlines
  Latency demand_latency_;
  double patience_ = 1;  // so many times what it is told bulk waits for a multicast
  Nanos hedge_delay_, demand_timeout_, bulk_timeout_;  // by learn()
  Nanos origin_success_ = INT64_MIN;
  Nanos origin_retry_ = INT64_MIN;  // do not ask it earlier
  Nanos origin_backoff_ = 0;        // 0: it answers
  bool fill_ = false;
  uint64_t rate_ = 0;  // bytes per second, 0: no limit
  double tokens_ = 0;  // bytes
  Nanos tokens_at_ = INT64_MIN;
  uint32_t window_;         // pages of bulk in flight: less where they do not come in time
  Nanos bulk_at_ = kNever;  // pump() has something to do then
  uint32_t hot_cursor_ = 0, fill_cursor_ = 0;  // blocks of 64 pages below are complete
  std::deque<Near> near_;
  ReceiverCounters counters_;
};

}  // namespace snow::exchange
