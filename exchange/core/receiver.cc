// What is here, who waits, who is woken.
#include "exchange/core/receiver.h"

#include <cassert>

#include "exchange/core/runs.h"

namespace snow::exchange {
namespace {

constexpr Nanos kHedgeUnknown = 20 * kMillisecond;  // before latencies are known

}  // namespace

Receiver::Receiver(uint32_t pages, HostNumber origin, const ReceiverOptions& options)
    : options_(options),
      origin_(origin),
      present_(pages),
      zero_(pages),
      hot_(pages),
      asked_(pages),
      hedge_delay_(std::max(options.hedge_least, kHedgeUnknown)),
      demand_timeout_(options.demand_timeout),
      bulk_timeout_(options.bulk_timeout),
      rate_(options.background_bytes_per_s),
      window_(options.bulk_window_pages) {
  transfers_.reserve(64);
  demands_.reserve(64);
}

uint32_t Receiver::mark(Run run) {
  if (hot_left_ > 0) {
    for (uint32_t at = run.first; at < run.end(); at += 64) {
      const uint64_t mask = low_bits(std::min(64u, run.end() - at));
      hot_left_ -= static_cast<uint32_t>(std::popcount(mask & hot_.bits(at) & ~present_.bits(at)));
    }
  }
  return present_.set(run);
}

void Receiver::set_present(Run run) { mark(run); }

void Receiver::set_asked_before() { asked_.set({0, asked_.size()}); }

void Receiver::set_hot(Run run) {
  run = overlap(run, {0, present_.size()});
  for (uint32_t page = run.first; page < run.end(); ++page) {
    if (hot_.set({page, 1}) != 0 && !present_.test(page)) ++hot_left_;
  }
  hot_cursor_ = 0;
  bulk_at_ = INT64_MIN;
}

void Receiver::drop(Run run) {
  run = overlap(run, {0, present_.size()});
  for (uint32_t page = run.first; page < run.end(); ++page) {
    if (zero_.test(page) || present_.reset({page, 1}) == 0) continue;
    // Others may have been sent here for it: this host must not wait at them when it asks again.
    asked_.set({page, 1});
    if (hot_.test(page)) ++hot_left_;
  }
  fill_cursor_ = 0;
  hot_cursor_ = 0;
  if (fill_ || hot_left_ > 0) bulk_at_ = INT64_MIN;
}

void Receiver::set_fill(bool on, uint64_t bytes_per_s) {
  fill_ = on;
  rate_ = bytes_per_s;
  fill_cursor_ = 0;
  bulk_at_ = INT64_MIN;
}

uint64_t Receiver::missing(Run run) const {
  return low_bits(run.count) & ~present_.bits(run.first);
}

uint64_t Receiver::uncovered(uint32_t first, uint64_t mask, Cover cover) const {
  mask &= ~present_.bits(first);
  for (const Transfer& transfer : transfers_) {
    if (mask == 0) break;
    if (cover == Cover::soon && transfer.state == Transfer::State::later) continue;
    if (cover == Cover::not_hedged && transfer.hedged) continue;
    mask &= ~moved(transfer.open, transfer.run.first, first);
  }
  return mask;
}

bool Receiver::wanted_by_demand(Run run) const {
  return std::any_of(demands_.begin(), demands_.end(), [&](const Demand& demand) {
    return !demand.watch && overlap(demand.run, run).count > 0;
  });
}

// A demand does not wait for bulk that the origin has put off or is about to multicast some time:
// it asks itself, and the origin sends it sooner.
void Receiver::steal(Run run) {
  for (size_t i = transfers_.size(); i-- > 0;) {
    Transfer& transfer = transfers_[i];
    if (transfer.state == Transfer::State::asked || transfer.lane == Lane::demand) continue;
    const uint64_t taken =
        transfer.open & moved(low_bits(run.count), run.first, transfer.run.first);
    if (taken == 0) continue;
    // The origin did not count us this time; it may have when it was asked before.
    if (!transfer.again) {
      for_each_run(taken, transfer.run.first, [&](Run piece) { asked_.reset(piece); });
    }
    transfer.open &= ~taken;
    if (transfer.open == 0) remove(transfer);
  }
}

Want Receiver::want(Run run, Nanos now, Actions& out) {
  assert(run.count > 0 && run.count <= kMaxRunPages && run.end() <= present_.size());
  Want want;
  const uint64_t miss = missing(run);
  if (miss == 0) return want;
  ++counters_.demands;
  steal(run);
  want.demand = ++last_id_;
  demands_.push_back({want.demand, run, now, now + hedge_delay_, false});
  if (fill_) note_near(run);
  want.state = Want::State::wait;
  const uint64_t open = uncovered(run.first, miss, Cover::any);
  if (open == 0) ++counters_.demands_waited;
  for_each_run(open, run.first, [&](Run piece) {
    if (!origin_usable(now)) {
      Transfer part;
      part.run = piece;
      part.open = low_bits(piece.count);
      part.demand = want.demand;
      park(part, origin_retry_, true);
    } else if (want.state == Want::State::wait) {
      want.state = Want::State::ask;
      want.ask = ask_origin(piece, Lane::demand, want.demand, now);
    } else {
      out.asks.push_back(ask_origin(piece, Lane::demand, want.demand, now));
    }
  });
  return want;
}

void Receiver::cancel(DemandId demand) {
  const auto at = std::find_if(demands_.begin(), demands_.end(),
                               [&](const Demand& other) { return other.id == demand; });
  if (at == demands_.end()) return;
  *at = demands_.back();
  demands_.pop_back();
  for (size_t i = transfers_.size(); i-- > 0;) {
    Transfer& transfer = transfers_[i];
    if (transfer.state == Transfer::State::later && !wanted_by_demand(transfer.run)) {
      remove(transfer);
    }
  }
}

Serve Receiver::serve(Run run, bool no_wait, Nanos now) {
  const uint64_t miss = missing(run);
  if (miss == 0) return {};
  if (no_wait || uncovered(run.first, miss, Cover::soon) != 0) return {Serve::State::part, 0};
  const DemandId id = ++last_id_;
  demands_.push_back({id, run, now, kNever, true});
  return {Serve::State::wait, id};
}

// Watches for pages that nobody is fetching any more.
void Receiver::release_watches(Actions& out) {
  for (size_t i = demands_.size(); i-- > 0;) {
    const Demand& demand = demands_[i];
    if (!demand.watch) continue;
    if (uncovered(demand.run.first, missing(demand.run), Cover::soon) == 0) continue;
    out.arrived.push_back(demand.id);
    demands_[i] = demands_.back();
    demands_.pop_back();
  }
}

void Receiver::arrived(Run run, Nanos now, Actions& out) {
  const uint32_t added = mark(run);
  counters_.duplicates += run.count - added;
  if (added == 0) return;
  for (size_t i = transfers_.size(); i-- > 0;) {
    Transfer& transfer = transfers_[i];
    if (overlap(transfer.run, run).count == 0) continue;
    transfer.open &= ~present_.bits(transfer.run.first);
    if (transfer.open == 0) remove(transfer);
  }
  for (size_t i = demands_.size(); i-- > 0;) {
    const Demand& demand = demands_[i];
    if (overlap(demand.run, run).count == 0 || missing(demand.run) != 0) continue;
    if (!demand.watch) demand_latency_.add(now - demand.since);
    out.arrived.push_back(demand.id);
    demands_[i] = demands_.back();
    demands_.pop_back();
  }
  pump(now, out);
}

void Receiver::zeros(Run run, Nanos now, Actions& out) {
  run = overlap(run, {0, present_.size()});
  // A page that came with its bytes keeps them.
  for (uint32_t page = run.first; page < run.end(); ++page) {
    if (!present_.test(page)) zero_.set({page, 1});
  }
  const uint64_t before = counters_.duplicates;
  arrived(run, now, out);
  counters_.duplicates = before;
}

void Receiver::unasked(Run run, Nanos now, Actions& out) {
  run = overlap(run, {0, present_.size()});
  learn_patience(run);
  const uint32_t before = present_.count();
  arrived(run, now, out);
  counters_.pages_unasked += present_.count() - before;
}

std::vector<Waiting> Receiver::waiting() const {
  std::vector<Waiting> list;
  for (const Demand& demand : demands_) {
    if (demand.watch) continue;
    Waiting entry{demand.run, demand.since, kNoHost};
    for (const Transfer& transfer : transfers_) {
      if (transfer.state != Transfer::State::later && overlap(transfer.run, demand.run).count > 0) {
        entry.host = transfer.host;
      }
    }
    list.push_back(entry);
  }
  return list;
}

Nanos Receiver::next_tick() const {
  Nanos next = bulk_at_;
  for (const Transfer& transfer : transfers_) next = std::min(next, transfer.until);
  for (const Demand& demand : demands_) next = std::min(next, demand.hedge_at);
  return next;
}

}  // namespace snow::exchange
