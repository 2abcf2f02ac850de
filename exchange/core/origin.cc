#include "exchange/core/origin.h"

#include <cassert>

#include "exchange/core/runs.h"

namespace snow::exchange {
namespace {

constexpr uint64_t kLoadMost = 1 << 16;  // pages; then all loads are halved
constexpr uint64_t kSecondShare = 16;    // of what left once may leave a second time by multicast
constexpr uint64_t kSecondLeast = 32;
constexpr size_t kReportsMost = 1024;
constexpr Nanos kRetryLeast = 20 * kMillisecond;

}  // namespace

Origin::Origin(uint32_t pages, const OriginOptions& options)
    : options_(options),
      pages_(pages),
      working_set_(pages),
      random_(options.seed * 0x9e3779b97f4a7c15 + 1),
      multicast_(pages, options.multicast) {}

uint64_t Origin::random() {  // splitmix64
  uint64_t z = (random_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

Origin::Way Origin::way_of(const Fetch& fetch, uint32_t page, Nanos now) const {
  const PageState& state = pages_[page];
  const bool enabled = multicast_.enabled(now);
  if (enabled && !fetch.no_redirect && multicast_.listens(fetch.host)) {
    if (multicast_.is_coming(page)) {
      // Not for one who waited for it and missed it, or who joined after it was sent.
      const bool missed =
          multicast_.was_sent(page) && (fetch.again || !multicast_.heard(fetch.host, page));
      if (!missed && multicast_.hears(fetch.host)) return Way::already_coming;
    } else if (!multicast_.was_sent(page)) {
      // Before anybody has heard anything all count, to find out.
      const size_t hearing =
          multicast_.hearing() > 0 ? multicast_.hearing() : multicast_.listeners();
      // One that was given to somebody is better passed on from there, unless so little left twice
      // yet that it does not matter.
      Hosts hosts;
      const bool held = options_.redirects && usable_holders(fetch, page, now, hosts) > 0;
      const bool spare = left_ < distinct_ + distinct_ / kSecondShare + kSecondLeast;
      if ((!held || spare) && hearing >= options_.multicast.hearing_least &&
          hearing >= size_t{state.askers} + 2 && multicast_.has_room(fetch.lane)) {
        return Way::coming;
      }
    }
  }
  if (!fetch.no_redirect && options_.redirects) {
    const bool sent = multicast_.was_sent(page);
    if (sent && enabled && multicast_.hearing() > 1) return Way::listeners;
    const bool spare = !sent && fetch.lane == Lane::demand &&
                       state.given < options_.direct_copies &&
                       queued_bytes_ < options_.loaded_bytes;
    Hosts hosts;
    if (!spare && usable_holders(fetch, page, now, hosts) > 0) return Way::redirect;
  }
  if (fetch.lane != Lane::demand && queued_bytes_ >= options_.retry_bytes) return Way::retry;
  return Way::give;
}

void Origin::on_fetch(const Fetch& fetch, Nanos now, std::vector<Decision>& out) {
  assert(fetch.run.count > 0 && fetch.run.count <= kMaxRunPages &&
         fetch.run.end() <= pages_.size());
  ++counters_.fetches;
  multicast_.expire(now);
  if (fetch.lane == Lane::demand && (!first_known_ || fetch.host == first_host_)) {
    first_known_ = true;
    first_host_ = fetch.host;
    working_set_.set(fetch.run);
  }
  if (fetch.again && multicast_.was_sent(fetch.run.first)) multicast_.note_missed(fetch.host);
  for (uint32_t page = fetch.run.first; page < fetch.run.end();) {
    const Way way = way_of(fetch, page, now);
    Decision decision;
    decision.run = {page, 1};
    while (decision.run.end() < fetch.run.end() && way_of(fetch, decision.run.end(), now) == way) {
      ++decision.run.count;
    }
    switch (way) {
      case Way::give:
        give(fetch, decision);
        break;
      case Way::redirect:
        redirect_to_holders(fetch, now, decision);
        break;
      case Way::listeners:
        if (!redirect_to_listeners(fetch, now, decision)) give(fetch, decision);
        break;
      case Way::coming:
        multicast_.queue(decision.run, fetch.lane);
        note_left(decision.run);
        counters_.pages_multicast += decision.run.count;
        if (multicast_.hears(fetch.host)) {
          decision.kind = Decision::Kind::coming;
          decision.wait = multicast_.wait_for(fetch.lane);
          counters_.pages_coming += decision.run.count;
        } else {
          give(fetch, decision);
        }
        break;
      case Way::already_coming:
        decision.kind = Decision::Kind::already_coming;
        if (fetch.lane == Lane::demand) multicast_.hurry(decision.run);
        decision.wait = multicast_.wait_for(fetch.lane);
        counters_.pages_already_coming += decision.run.count;
        break;
      case Way::retry:
        decision.kind = Decision::Kind::retry;
        decision.wait = kRetryLeast + static_cast<Nanos>(random() % (2 * kRetryLeast));
        ++counters_.retries;
        break;
    }
    out.push_back(decision);
    page = decision.run.end();
  }
}

void Origin::give(const Fetch& fetch, Decision& decision) {
  decision.kind = Decision::Kind::give;
  counters_.pages_given += decision.run.count;
  note_left(decision.run);
  for (uint32_t page = decision.run.first; page < decision.run.end(); ++page) {
    if (pages_[page].given < UINT8_MAX) ++pages_[page].given;
  }
  record(fetch.host, decision.run, random(), true);
}

void Origin::note_left(Run run) {
  left_ += run.count;
  for (uint32_t page = run.first; page < run.end(); ++page) {
    distinct_ += pages_[page].given == 0 && !multicast_.was_sent(page) ? 1 : 0;
  }
}

size_t Origin::usable_holders(const Fetch& fetch, uint32_t page, Nanos now, Hosts& hosts) const {
  size_t count = 0;
  hosts.fill(kNoHost);
  for (const HostNumber host : pages_[page].holders) {
    if (host != kNoHost && may_send_to(fetch.host, host, now)) hosts[count++] = host;
  }
  return count;
}

// Those that all pages of the decision have in common; it is cut to as many as have any.
size_t Origin::common_holders(const Fetch& fetch, Nanos now, Decision& decision,
                              Hosts& common) const {
  size_t count = usable_holders(fetch, decision.run.first, now, common);
  for (uint32_t i = 1; i < decision.run.count && count > 0; ++i) {
    const Hosts& holders = pages_[decision.run.first + i].holders;
    Hosts both;
    size_t left = 0;
    for (size_t k = 0; k < count; ++k) {
      if (std::find(holders.begin(), holders.end(), common[k]) != holders.end()) {
        both[left++] = common[k];
      }
    }
    if (left == 0) {
      decision.run.count = i;
      break;
    }
    count = left;
    common = both;
  }
  return count;
}

void Origin::redirect_to_holders(const Fetch& fetch, Nanos now, Decision& decision) {
  Hosts common;
  const size_t count = common_holders(fetch, now, decision, common);
  // The one that was named least lately first; which of equals is left to chance.
  std::rotate(common.begin(), common.begin() + static_cast<ptrdiff_t>(random() % count),
              common.begin() + static_cast<ptrdiff_t>(count));
  std::stable_sort(common.begin(), common.begin() + static_cast<ptrdiff_t>(count),
                   [&](HostNumber a, HostNumber b) { return load_of(a) < load_of(b); });
  decision.kind = Decision::Kind::redirect;
  decision.host_count = static_cast<uint8_t>(std::min(count, kMaxRedirectHosts));
  std::copy_n(common.begin(), decision.host_count, decision.hosts.begin());
  decision.no_wait = no_wait(fetch, decision);
  add_load(decision.hosts[0], decision.run.count);
  counters_.pages_redirected += decision.run.count;
  if (!decision.no_wait) record(fetch.host, decision.run, random(), false);
}

// May a redirected host wait at another one? Not if it asks again: that one may wait for it. Nor if
// it was there when the page was multicast: then others who came later may wait for it, and nobody
// knows who got it. Cuts the decision to pages for which the answer is the same.
bool Origin::no_wait(const Fetch& fetch, Decision& decision) const {
  const bool heard = multicast_.heard(fetch.host, decision.run.first);
  for (uint32_t i = 1; i < decision.run.count; ++i) {
    if (multicast_.heard(fetch.host, decision.run.first + i) != heard) decision.run.count = i;
  }
  return fetch.again || heard;
}

bool Origin::redirect_to_listeners(const Fetch& fetch, Nanos now, Decision& decision) {
  decision.kind = Decision::Kind::redirect;
  decision.no_wait = no_wait(fetch, decision);
  const uint32_t page = decision.run.first;
  const auto add = [&](HostNumber host) {
    const auto end = decision.hosts.begin() + decision.host_count;
    if (decision.host_count == kMaxRedirectHosts || !may_send_to(fetch.host, host, now) ||
        std::find(decision.hosts.begin(), end, host) != end) {
      return;
    }
    decision.hosts[decision.host_count++] = host;
  };
  // All that is said holds for every page of the run: else somebody waits at a host that came
  // later.
  Hosts holders;
  const size_t count = common_holders(fetch, now, decision, holders);
  size_t listeners = multicast_.listeners_before(page);
  for (uint32_t i = 1; i < decision.run.count; ++i) {
    listeners = std::min(listeners, multicast_.listeners_before(page + i));
  }
  // One that was given the page itself is sure to have it; the others may have missed it.
  if (count > 0) add(holders[random() % count]);
  for (size_t tries = 0; listeners > 0 && tries < 4 * kMaxRedirectHosts; ++tries) {
    const HostNumber host = multicast_.listener(random() % listeners);
    if (multicast_.hears(host)) add(host);
  }
  if (decision.host_count == 0) {
    decision.no_wait = false;
    return false;
  }
  std::stable_sort(decision.hosts.begin(), decision.hosts.begin() + decision.host_count,
                   [&](HostNumber a, HostNumber b) { return load_of(a) < load_of(b); });
  add_load(decision.hosts[0], decision.run.count);
  counters_.pages_redirected += decision.run.count;
  if (!decision.no_wait) record(fetch.host, decision.run, random(), false);
  return true;
}

void Origin::record(HostNumber host, Run run, uint64_t draw, bool certain) {
  for (uint32_t page = run.first; page < run.end(); ++page) {
    PageState& state = pages_[page];
    if (state.askers < UINT16_MAX) ++state.askers;
    if (std::find(state.holders.begin(), state.holders.end(), host) != state.holders.end()) {
      continue;
    }
    const auto empty = std::find(state.holders.begin(), state.holders.end(), kNoHost);
    if (empty != state.holders.end()) {
      *empty = host;
      continue;
    }
    // A uniform sample of all who asked (reservoir sampling).
    const uint64_t place = draw % (certain ? state.holders.size() : state.askers);
    if (place < state.holders.size()) state.holders[place] = host;
  }
}

bool Origin::may_send_to(HostNumber asker, HostNumber host, Nanos now) const {
  if (host == asker) return false;
  size_t reporters = 0;
  for (const Wrong& wrong : wrong_) {
    if (wrong.host != host) continue;
    if (wrong.reporter == asker || ++reporters >= 2) return false;
  }
  return std::none_of(slow_.begin(), slow_.end(),
                      [&](const Slow& slow) { return slow.host == host && slow.until > now; });
}

void Origin::report_wrong(HostNumber reporter, HostNumber host) {
  for (const Wrong& wrong : wrong_) {
    if (wrong.reporter == reporter && wrong.host == host) return;
  }
  if (wrong_.size() < kReportsMost) wrong_.push_back({reporter, host});
}

void Origin::report_slow(HostNumber, HostNumber host, Nanos now) {
  std::erase_if(slow_, [&](const Slow& slow) { return slow.until <= now || slow.host == host; });
  if (slow_.size() < kReportsMost) slow_.push_back({host, now + options_.congested_time});
}

void Origin::note_holder(HostNumber host, Run run) {
  record(host, overlap(run, {0, static_cast<uint32_t>(pages_.size())}), random(), true);
}

void Origin::forget_host(HostNumber host) {
  for (PageState& state : pages_) {
    for (HostNumber& holder : state.holders) {
      if (holder == host) holder = kNoHost;
    }
    const bool none = std::all_of(state.holders.begin(), state.holders.end(),
                                  [](HostNumber holder) { return holder == kNoHost; });
    if (none) state.given = 0;  // the next one is the first again
    if (none) state.askers = 0;
  }
  std::erase_if(wrong_,
                [&](const Wrong& wrong) { return wrong.host == host || wrong.reporter == host; });
  std::erase_if(slow_, [&](const Slow& slow) { return slow.host == host; });
  if (host < load_.size()) {
    load_total_ -= load_[host];
    load_[host] = 0;
  }
  if (first_host_ == host) first_host_ = kNoHost;
  multicast_.forget_host(host);
}

size_t Origin::traces_of(HostNumber host) const {
  size_t traces = multicast_.traces_of(host);
  for (const PageState& state : pages_) {
    traces += static_cast<size_t>(std::count(state.holders.begin(), state.holders.end(), host));
  }
  for (const Wrong& wrong : wrong_) {
    traces += wrong.host == host || wrong.reporter == host ? 1 : 0;
  }
  for (const Slow& slow : slow_) traces += slow.host == host ? 1 : 0;
  return traces + load_of(host) + (first_host_ == host ? 1 : 0);
}

uint32_t Origin::load_of(HostNumber host) const { return host < load_.size() ? load_[host] : 0; }

void Origin::add_load(HostNumber host, uint32_t pages) {
  if (host >= load_.size()) load_.resize(size_t{host} + 1, 0);
  load_[host] += pages;
  load_total_ += pages;
  if (load_total_ < kLoadMost) return;
  load_total_ = 0;
  for (uint32_t& load : load_) load_total_ += load /= 2;
}

std::vector<Run> Origin::working_set(uint32_t gap) const {
  std::vector<Run> runs;
  for (uint32_t block = 0; block < working_set_.blocks(); ++block) {
    for_each_run(working_set_.block(block), block * 64, [&](Run run) {
      if (!runs.empty() && run.first - runs.back().end() <= gap) {
        runs.back().count = run.end() - runs.back().first;
      } else {
        runs.push_back(run);
      }
    });
  }
  return runs;
}

}  // namespace snow::exchange
