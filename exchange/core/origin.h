// The origin's half of the decision core: for one image, how a FETCH is answered, who was given
// which page, what is multicast and how fast.
//
//   - The first host that asks for a page is given the bytes. Later ones are sent to hosts that
//     asked before them (bulk always, demands if the page was given `direct_copies` times or the
//     origin's own link is busy), never to one that is gone, reported or congested. Since a host is
//     only sent to earlier ones, and only on its first ask, nobody waits in a circle.
//   - With two or more listeners that do not have it, a page is multicast once; those who ask
//     within `duplicate_window` are told that it is coming. Who missed it asks `again` and is sent
//     to others who listened, who answer at once with what they have (no_wait). Who joined later is
//     sent to them too, and may wait there.
//   - The pages that the first host demanded are the working set.
//
// Who was given a page: up to four hosts for each, a uniform sample of all who asked so far. A
// uniform sample makes the relay a random recursive tree: the way to the origin grows with the
// logarithm of the number of hosts, and over many pages every host serves about as much as it
// takes.
//
// Not thread-safe; no call blocks. Cost: on_fetch of one page well under a microsecond. Memory: 12
// bytes and a bit a page, with multicast 14 bytes (3.5 MiB per GiB of image), some 64 bytes for
// each host.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "exchange/core/multicast.h"
#include "exchange/core/page_map.h"
#include "exchange/core/types.h"

namespace snow::exchange {

inline constexpr size_t kMaxRedirectHosts = 3;

struct Fetch {
  HostNumber host = kNoHost;
  Run run;  // 1 to kMaxRunPages pages within the image
  Lane lane = Lane::demand;
  bool no_redirect = false;
  bool again = false;  // was told that it is coming, and it did not
};

// The answer for a part of the run. Zero pages are the caller's: it answers them itself, and may
// ask the core or not.
struct Decision {
  enum class Kind : uint8_t {
    give,            // the bytes
    redirect,        // `hosts`, best first, with the pages' hashes
    coming,          // multicast it (it is in the multicast queue now), tell the host to wait
    already_coming,  // tell it to wait; the same COMING on the wire
    retry            // RETRY after `wait`: bulk, and the link is too busy
  } kind = Kind::give;
  Run run;
  uint8_t host_count = 0;
  std::array<HostNumber, kMaxRedirectHosts> hosts{};
  bool no_wait = false;  // redirect: those hosts answer with what they have now
  Nanos wait = 0;        // coming, already_coming: at most so long; retry: after so long
};

struct OriginOptions {
  uint64_t seed = 1;
  uint8_t direct_copies = 1;  // demands: so many hosts get the bytes before others are redirected
  bool redirects = true;
  uint64_t loaded_bytes = 1 << 20;  // queued for sending: from here on demands are redirected too
  uint64_t retry_bytes = 32 << 20;  // queued: from here on bulk is told to come again
  Nanos congested_time = 2 * kSecond;  // a host that was reported slow gets no redirects for it
  MulticastOptions multicast;
};

struct OriginCounters {
  uint64_t fetches = 0;
  uint64_t pages_given = 0, pages_redirected = 0, pages_coming = 0, pages_already_coming = 0;
  uint64_t pages_multicast = 0, retries = 0;
};

class Origin {
 public:
  Origin(uint32_t pages, const OriginOptions& options);

  // Appends the answer, in parts that cover the run in order (mostly one). To be sent in this
  // order; a `give` counts as given from now on.
  void on_fetch(const Fetch& fetch, Nanos now, std::vector<Decision>& out);

  // Bytes that wait to be sent to anybody, all images together, as the engine sees it now and then.
  void set_queued_bytes(uint64_t bytes) { queued_bytes_ = bytes; }

  // A receiver's report of another host. Two reporters of wrong bytes, and nobody is sent there any
  // more; one, and that one is not. Not for hosts that are forgotten already.
  void report_wrong(HostNumber reporter, HostNumber host);
  void report_slow(HostNumber reporter, HostNumber host, Nanos now);
  // The host is gone, or its number is to be used again: nothing of it is left. Costs a pass over
  // the pages.
  void forget_host(HostNumber host);
  // The host has all of it already (it detached), or some: others may be sent there.
  void note_holder(HostNumber host, Run run);

  // Multicast: see multicast.h. Listeners, their loss reports, and what to send next:
  //   multicast().subscribe(host, now), .unsubscribe(host), .report(...), .next(now), .tick(now)
  [[nodiscard]] Multicast& multicast() { return multicast_; }
  [[nodiscard]] const Multicast& multicast() const { return multicast_; }

  // The pages that the first host demanded so far, ascending, joined; neighbours that are at most
  // `gap` pages apart are one run. Runs may be longer than kMaxRunPages.
  [[nodiscard]] std::vector<Run> working_set(uint32_t gap = 0) const;
  [[nodiscard]] HostNumber working_set_host() const { return first_host_; }

  [[nodiscard]] const OriginCounters& counters() const { return counters_; }
  // How many places still name the host (for tests: 0 after forget_host).
  [[nodiscard]] size_t traces_of(HostNumber host) const;

 private:
  struct PageState {
    std::array<HostNumber, 4> holders{kNoHost, kNoHost, kNoHost, kNoHost};
    uint16_t askers = 0;  // saturates
    uint8_t given = 0;    // by the origin itself; saturates
    uint8_t reserved = 0;
  };
  static_assert(sizeof(PageState) == 12);
  struct Slow {
    HostNumber host = kNoHost;
    Nanos until = 0;
  };
  struct Wrong {
    HostNumber reporter = kNoHost;
    HostNumber host = kNoHost;
  };

  enum class Way : uint8_t { give, redirect, listeners, coming, already_coming, retry };

  // How one page would be answered; a decision covers pages that go the same way.
  [[nodiscard]] Way way_of(const Fetch& fetch, uint32_t page, Nanos now) const;
  using Hosts = std::array<HostNumber, 4>;
  // The page's holders that the asker may be sent to; the rest is kNoHost. How many: count.
  size_t usable_holders(const Fetch& fetch, uint32_t page, Nanos now, Hosts& hosts) const;
  size_t common_holders(const Fetch& fetch, Nanos now, Decision& decision, Hosts& common) const;
  void redirect_to_holders(const Fetch& fetch, Nanos now, Decision& decision);
  bool redirect_to_listeners(const Fetch& fetch, Nanos now, Decision& decision);
  void note_left(Run run);
  bool no_wait(const Fetch& fetch, Decision& decision) const;
  void give(const Fetch& fetch, Decision& decision);
  [[nodiscard]] bool may_send_to(HostNumber asker, HostNumber host, Nanos now) const;
  // `draw`: one random number for a whole run, so that its pages stay together. `certain`: it was
  // given the bytes.
  void record(HostNumber host, Run run, uint64_t draw, bool certain);
  [[nodiscard]] uint32_t load_of(HostNumber host) const;
  void add_load(HostNumber host, uint32_t pages);
  uint64_t random();

  const OriginOptions options_;
  std::vector<PageState> pages_;
  PageMap working_set_;
  HostNumber first_host_ = kNoHost;
  bool first_known_ = false;
  uint64_t queued_bytes_ = 0;
  uint64_t left_ = 0, distinct_ = 0;  // pages that were sent, and different ones
  std::vector<Wrong> wrong_;
  std::vector<Slow> slow_;
  std::vector<uint32_t> load_;  // by host number: pages that others were sent there for, halved
  uint64_t load_total_ = 0;     // now and then, so that it means "lately"
  uint64_t random_;
  Multicast multicast_;
  OriginCounters counters_;
};

}  // namespace snow::exchange
