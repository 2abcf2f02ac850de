// What must hold, whatever happens.
#include <fmt/format.h>

#include <algorithm>

#include "exchange/core/runs.h"
#include "sim/world.h"

namespace snow::sim {
namespace {

constexpr size_t kInFlightMost = 1000;
constexpr uint32_t kChainMost = 64;

}  // namespace

void World::check() {
  bool all = true;
  for (size_t i = 1; i < hosts_.size(); ++i) {
    Host& host = hosts_[i];
    if (host.for_good || host.receiver == nullptr) {
      // One that was not started yet will be.
      all = all && (host.for_good || host.receiver != nullptr);
      continue;
    }
    check_host(static_cast<HostNumber>(i));
    all = all && host.done_at >= 0 && (!scenario_.fill || host.complete_at >= 0);
  }
  for (const Fault& fault : scenario_.faults) all = all && fault.at <= now_;
  if (all) ended_ = true;
  if (!ended_ && now_ > scenario_.limit) {
    for (size_t i = 1; i < hosts_.size(); ++i) {
      const Host& host = hosts_[i];
      if (host.for_good || (host.done_at >= 0 && (!scenario_.fill || host.complete_at >= 0))) {
        continue;
      }
      fail(fmt::format("host {} has not {} everything: {} of {} pages, {} in flight, {} demands", i,
                       host.done_at < 0 ? "read" : "fetched", host.receiver->pages_present(),
                       host.receiver->pages_total(), host.receiver->in_flight(),
                       host.receiver->demands_waiting()));
    }
    fail("a host was not started");
  }
}

void World::check_host(HostNumber number) {
  Host& host = hosts_[number];
  if (host.state != State::up) return;
  const Host& origin = hosts_[0];
  const bool source = origin.state == State::up && !origin.mute && network_.reachable(number, 0);
  for (const Reader& reader : host.readers) {
    if (!reader.waiting) continue;
    if (host.receiver->present(reader.run)) {
      fail(fmt::format("lost wake-up: host {} waits since {:.6f} s for pages {}+{}, which are here",
                       number, static_cast<double>(reader.since) / 1e9, reader.run.first,
                       reader.run.count));
    }
    const Nanos since = std::max(reader.since, last_fault_);
    if (source && now_ - since > scenario_.demand_most) {
      fail(fmt::format("a demand does not end: host {}, pages {}+{}, since {:.6f} s", number,
                       reader.run.first, reader.run.count,
                       static_cast<double>(reader.since) / 1e9));
    }
  }
  if (host.receiver->in_flight() > kInFlightMost) {
    fail(fmt::format("host {} has {} asks in flight", number, host.receiver->in_flight()));
  }
}

// `from` now waits at `at` for `run`. If whoever `at` waits at, and so on, is `from`, nobody of
// them will ever have it.
void World::check_chain(HostNumber from, HostNumber at, Run run, uint32_t depth) {
  longest_chain_ = std::max(longest_chain_, depth);
  if (depth > kChainMost) {
    fail(fmt::format("{} hosts wait for each other in a row", depth));
    return;
  }
  for (const Held& held : hosts_[at].held) {
    const Run both = exchange::overlap(held.run, run);
    if (both.count == 0 || hosts_[at].receiver->present(both)) continue;
    if (held.at == from) {
      fail(fmt::format("source loop: hosts {} and {} wait for each other, page {}", from, at,
                       both.first));
      return;
    }
    check_chain(from, held.at, both, depth + 1);
    if (!violation_.empty()) return;
  }
}

void World::check_end() {
  for (size_t i = 1; i < hosts_.size(); ++i) {
    const Host& host = hosts_[i];
    if (host.for_good) {
      const size_t traces = origin_->traces_of(static_cast<HostNumber>(i));
      if (scenario_.told && traces > 0) {
        fail(fmt::format("host {} is gone, and the origin has {} traces of it", i, traces));
      }
      continue;
    }
    if (host.state != State::up) continue;
    if (host.receiver->in_flight() > 0 || host.receiver->demands_waiting() > 0) {
      fail(fmt::format("everything is done, and host {} has {} asks in flight and {} demands", i,
                       host.receiver->in_flight(), host.receiver->demands_waiting()));
    }
  }
  const Result now = result();
  if (scenario_.amplification_most > 0 && now.amplification() > scenario_.amplification_most) {
    fail(fmt::format("the origin sent {:.2f} times what was needed; {:.2f} are allowed",
                     now.amplification(), scenario_.amplification_most));
  }
}

Result World::result() {
  Result result;
  result.violation = violation_;
  std::vector<std::pair<Nanos, Nanos>> demands;
  Nanos last = 1;
  for (size_t i = 1; i < hosts_.size(); ++i) {
    const Host& host = hosts_[i];
    if (host.receiver == nullptr) continue;
    if (host.done_at >= 0) result.done.push_back(host.done_at - host.started);
    if (host.complete_at >= 0) result.complete.push_back(host.complete_at - host.started);
    last = std::max(last, host.done_at);
    const exchange::ReceiverCounters& counters = host.receiver->counters();
    result.moved_bytes += uint64_t{exchange::kPageBytes} *
                          (counters.pages_origin + counters.pages_peer + counters.pages_unasked);
    result.redirects += counters.redirects;
    result.hedges += counters.hedges;
    result.coming_missed += counters.coming_missed;
    result.failures += counters.failures;
    result.duplicates += counters.duplicates;
    demands.emplace_back(host.receiver->demand_latency().quantile(0.5),
                         host.receiver->demand_latency().quantile(0.99));
  }
  std::sort(result.done.begin(), result.done.end());
  std::sort(result.complete.begin(), result.complete.end());
  std::sort(demands.begin(), demands.end());
  if (!demands.empty()) {
    result.demand_p50 = demands[demands.size() / 2].first;
    result.demand_p99 = demands[demands.size() / 2].second;
  }
  for (uint32_t page = 0; page < scenario_.image_pages; ++page) {
    if (needed_.test(page) && !zero_.test(page)) result.distinct_bytes += exchange::kPageBytes;
  }
  result.origin_page_bytes = origin_page_bytes_;
  result.origin_requests = origin_requests_;
  result.origin = origin_->counters();
  result.multicast_rate = origin_->multicast().rate_bytes_per_s();
  result.longest_chain = longest_chain_;
  result.origin_cpu_busy = static_cast<double>(cpu_used_) / 2 / static_cast<double>(last);
  result.origin_link_busy = static_cast<double>(origin_page_bytes_) /
                            scenario_.links[0].up_bytes_per_s * 1e9 / static_cast<double>(last);
  result.events = queue_.made();
  result.fingerprint = fingerprint_;
  return result;
}

}  // namespace snow::sim
