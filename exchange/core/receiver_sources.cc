// Of whom to ask, and what if that one does not do: candidates of a redirect, the origin, hedging,
// deadlines, hosts that are shunned.
#include <cassert>

#include "exchange/core/receiver.h"
#include "exchange/core/runs.h"

namespace snow::exchange {
namespace {

constexpr Nanos kHedgeMost = kSecond;
constexpr Nanos kTimeoutMost = 60 * kSecond;
constexpr Nanos kShunTime = 2 * kSecond;
constexpr Nanos kShunTimeSilent = 60 * kSecond;  // it let a deadline pass: each more costs another
constexpr Nanos kShunMultiple = 8;  // or so many times what it cost: a link may need long deadlines
constexpr uint32_t kWindowLeast = 8;
constexpr uint64_t kSamples = 8;
constexpr size_t kShunnedMost = 4096;

}  // namespace

Ask Receiver::send(Transfer transfer, Nanos now) {
  transfer.id = ++last_id_;
  transfer.state = Transfer::State::asked;
  transfer.sampled = false;
  transfer.hedged = false;
  transfer.sent = now;
  transfer.until = now + timeout(transfer.lane, transfer.failures);
  ++counters_.asks[static_cast<size_t>(transfer.lane)];
  const bool of_origin = transfer.host == origin_;
  if (of_origin) {
    transfer.again = transfer.again || !asked_.none(transfer.run);
    asked_.set(transfer.run);
    // While it does not answer, this one is the probe; others wait for the next.
    if (origin_backoff_ > 0) origin_retry_ = now + origin_backoff_;
  }
  transfers_.push_back(transfer);
  return {transfer.id,
          transfer.host,
          transfer.run,
          transfer.lane,
          transfer.until,
          of_origin && transfer.no_redirect,
          of_origin && transfer.again,
          !of_origin && transfer.no_wait,
          transfer.demand};
}

Ask Receiver::ask_origin(Run run, Lane lane, DemandId demand, Nanos now) {
  Transfer transfer;
  transfer.run = run;
  transfer.open = low_bits(run.count);
  transfer.lane = lane;
  transfer.host = origin_;
  transfer.demand = demand;
  return send(transfer, now);
}

void Receiver::next_source(Transfer part, Nanos now, Actions& out) {
  while (part.candidates > 0 && shunned(part.hosts[part.candidates - 1], now)) --part.candidates;
  const bool wanted = part.lane == Lane::demand || wanted_by_demand(part.run);
  if (wanted) part.lane = Lane::demand;
  const uint64_t open = uncovered(part.run.first, part.open, Cover::not_hedged);
  bool put_off = false;
  if (part.candidates > 0) {
    part.host = part.hosts[--part.candidates];
  } else {
    // No peer did: the bytes, please.
    part.no_redirect = part.no_redirect || part.host != origin_;
    part.host = origin_;
    put_off = !origin_usable(now);
  }
  for_each_run(open, part.run.first, [&](Run piece) {
    Transfer transfer = part;
    transfer.run = piece;
    transfer.open = low_bits(piece.count);
    if (!put_off) {
      out.asks.push_back(send(transfer, now));
    } else if (wanted) {
      park(transfer, origin_retry_, true);
    }
  });
  if (put_off) {
    release_watches(out);
    if (!wanted) pump(now, out);
  }
}

void Receiver::lose(Transfer part, Nanos now, Actions& out) {
  ++counters_.failures;
  if (part.lane != Lane::demand && now >= part.until) window_ = std::max(window_ / 2, kWindowLeast);
  if (part.failures < 8) ++part.failures;
  if (part.host != origin_) {
    const Nanos silent = std::max(kShunTimeSilent, kShunMultiple * (now - part.sent));
    shun(part.host, now + (now >= part.until ? silent : kShunTime));
    out.reports.push_back({Report::Kind::slow, part.host});
    next_source(part, now, out);
    return;
  }
  origin_failed(part.sent, now);
  if (part.failures < 2 || !origin_usable(now)) {
    next_source(part, now, out);
    return;
  }
  // It answers others, but not this one: not in a tight circle.
  const Nanos pause = options_.backoff_least << std::min<int>(part.failures - 2, 8);
  park(part, now + std::min(pause, options_.backoff_most), false);
  release_watches(out);
}

void Receiver::park(const Transfer& part, Nanos until, bool for_origin) {
  Transfer transfer = part;
  transfer.id = ++last_id_;
  transfer.state = Transfer::State::later;
  transfer.for_origin = for_origin;
  transfer.hedged = false;
  transfer.until = until;
  transfers_.push_back(transfer);
}

void Receiver::origin_failed(Nanos sent, Nanos now) {
  if (origin_success_ >= sent) return;  // it answers others
  if (origin_backoff_ > 0 && now < origin_retry_ && sent < origin_retry_ - origin_backoff_) return;
  origin_backoff_ = std::clamp(origin_backoff_ * 2, options_.backoff_least, options_.backoff_most);
  origin_retry_ = now + origin_backoff_;
}

void Receiver::origin_answered(Nanos now, Actions& out) {
  origin_success_ = now;
  if (origin_backoff_ == 0) return;
  origin_backoff_ = 0;
  origin_retry_ = INT64_MIN;
  release_parked(now, out);
}

void Receiver::release_parked(Nanos now, Actions& out) {
  for (size_t i = transfers_.size(); i-- > 0;) {
    if (transfers_[i].state != Transfer::State::later || !transfers_[i].for_origin) continue;
    Transfer part = transfers_[i];
    remove(transfers_[i]);
    part.host = origin_;
    for_each_run(part.open, part.run.first, [&](Run piece) {
      part.run = piece;
      part.open = low_bits(piece.count);
      out.asks.push_back(send(part, now));
    });
  }
  bulk_at_ = INT64_MIN;
}

void Receiver::shun(HostNumber host, Nanos until) {
  for (Shunned& entry : shunned_) {
    if (entry.host == host) {
      entry.until = std::max(entry.until, until);
      return;
    }
  }
  if (shunned_.size() < kShunnedMost) shunned_.push_back({host, until});
}

bool Receiver::shunned(HostNumber host, Nanos now) const {
  return std::any_of(shunned_.begin(), shunned_.end(),
                     [&](const Shunned& entry) { return entry.host == host && entry.until > now; });
}

// Quantiles cost more than a demand may: only now and then.
void Receiver::learn() {
  const Nanos p95 = ask_latency_.quantile(0.95);
  if (ask_latency_.count() >= kSamples) {
    hedge_delay_ = std::clamp(p95 * options_.hedge_p95_multiple, options_.hedge_least, kHedgeMost);
  }
  demand_timeout_ = std::max(options_.demand_timeout, 4 * p95);
  bulk_timeout_ = std::max(options_.bulk_timeout, 4 * bulk_latency_.quantile(0.95));
}

Nanos Receiver::timeout(Lane lane, uint8_t failures) const {
  const Nanos base = lane == Lane::demand ? demand_timeout_ : bulk_timeout_;
  // No more than that: a source that is back is to be noticed soon.
  return std::min(base << std::min<int>(failures, 2), kTimeoutMost);
}

void Receiver::hedge(size_t index, Nanos now, Actions& out) {
  const Demand demand = demands_[index];
  const Nanos delay = hedge_delay_;
  demands_[index].hedge_at = now + delay;
  if (!origin_usable(now)) {
    demands_[index].hedge_at = std::max(now + delay, origin_retry_);
    return;
  }
  uint64_t slow = missing(demand.run);
  uint64_t slow_peer = 0;
  Transfer other;  // asked of a peer, and the redirect named more of them
  for (Transfer& transfer : transfers_) {
    const uint64_t covers = moved(transfer.open, transfer.run.first, demand.run.first);
    if ((covers & slow) == 0) continue;
    // Asked of the origin as a demand: there is nothing better, unless it does not answer; then
    // this is the next probe. To be asked later: see expire().
    const bool best = transfer.state == Transfer::State::later ||
                      (transfer.state == Transfer::State::asked && transfer.host == origin_ &&
                       transfer.lane == Lane::demand && origin_backoff_ == 0);
    if (best) {
      slow &= ~covers;
    } else {
      transfer.hedged = true;
    }
    if (transfer.host == origin_) continue;
    slow_peer |= covers;
    if (transfer.candidates > 0 && other.candidates == 0) {
      other = transfer;
      transfer.candidates = 0;
    }
  }
  if (other.candidates > 0 && slow != 0) {
    // Another peer first: with many hosts the origin could not give every slow page itself.
    other.lane = Lane::demand;
    other.failures = 0;
    other.demand = demand.id;
    other.host = other.hosts[--other.candidates];
    const uint64_t open = other.open & ~present_.bits(other.run.first);
    slow &= ~moved(open, other.run.first, demand.run.first);
    for_each_run(open, other.run.first, [&](Run piece) {
      other.run = piece;
      other.open = low_bits(piece.count);
      ++counters_.hedges;
      out.asks.push_back(send(other, now));
    });
  }
  // The last probe had no answer.
  if (slow != 0) origin_backoff_ = std::min(2 * origin_backoff_, options_.backoff_most);
  for_each_run(slow, demand.run.first, [&](Run piece) {
    Transfer transfer;
    transfer.run = piece;
    transfer.open = low_bits(piece.count);
    transfer.host = origin_;
    transfer.no_redirect =
        (slow_peer & moved(low_bits(piece.count), piece.first, demand.run.first)) != 0;
    transfer.demand = demand.id;
    ++counters_.hedges;
    out.asks.push_back(send(transfer, now));
  });
}

void Receiver::expire(Nanos now, Actions& out) {
  // What is appended meanwhile is due later; what is removed is replaced by one that was seen.
  for (size_t i = transfers_.size(); i-- > 0;) {
    if (i >= transfers_.size() || transfers_[i].until > now) continue;
    Transfer part = transfers_[i];
    switch (part.state) {
      case Transfer::State::asked:
        remove(transfers_[i]);
        lose(part, now, out);
        break;
      case Transfer::State::coming:
        remove(transfers_[i]);
        ++counters_.coming_missed;
        part.again = true;
        part.missed = true;
        part.candidates = 0;
        part.failures = 0;
        for_each_run(part.open, part.run.first, [&](Run piece) {
          Transfer transfer = part;
          transfer.run = piece;
          transfer.open = low_bits(piece.count);
          transfer.host = origin_;
          if (origin_usable(now)) {
            out.asks.push_back(send(transfer, now));
          } else if (part.lane == Lane::demand || wanted_by_demand(piece)) {
            park(transfer, origin_retry_, true);
          }
        });
        break;
      case Transfer::State::later:
        if (part.for_origin && !origin_usable(now)) {
          transfers_[i].until = origin_retry_;
          break;
        }
        remove(transfers_[i]);
        part.host = origin_;
        for_each_run(part.open, part.run.first, [&](Run piece) {
          Transfer transfer = part;
          transfer.run = piece;
          transfer.open = low_bits(piece.count);
          if (origin_usable(now)) {
            out.asks.push_back(send(transfer, now));
          } else if (part.lane == Lane::demand || wanted_by_demand(piece)) {
            park(transfer, origin_retry_, true);
          }
        });
        break;
    }
  }
}

void Receiver::host_down(HostNumber host, Nanos now, Actions& out) {
  if (host != origin_) {
    shun(host, now + kShunTime);
  } else {
    origin_backoff_ = std::max(origin_backoff_, options_.backoff_least);
    origin_retry_ = std::max(origin_retry_, now + origin_backoff_);
    origin_success_ = INT64_MIN;
  }
  for (size_t i = transfers_.size(); i-- > 0;) {
    if (i >= transfers_.size()) continue;
    const Transfer part = transfers_[i];
    if (part.state != Transfer::State::asked || part.host != host) continue;
    remove(transfers_[i]);
    next_source(part, now, out);
  }
}

void Receiver::host_up(HostNumber host, Nanos now, Actions& out) {
  std::erase_if(shunned_,
                [&](const Shunned& entry) { return entry.host == host && entry.until != kNever; });
  if (host != origin_ || origin_backoff_ == 0) return;
  origin_backoff_ = 0;
  origin_retry_ = INT64_MIN;
  release_parked(now, out);
}

void Receiver::forget_host(HostNumber host, Nanos now, Actions& out) {
  for (Transfer& transfer : transfers_) {
    const auto end =
        std::remove(transfer.hosts.begin(), transfer.hosts.begin() + transfer.candidates, host);
    transfer.candidates = static_cast<uint8_t>(end - transfer.hosts.begin());
  }
  host_down(host, now, out);
  std::erase_if(shunned_, [&](const Shunned& entry) { return entry.host == host; });
}

void Receiver::set_origin(HostNumber origin, Nanos now, Actions& out) {
  const HostNumber old = origin_;
  origin_ = origin;
  origin_backoff_ = 0;
  origin_retry_ = INT64_MIN;
  release_parked(now, out);
  for (size_t i = transfers_.size(); i-- > 0;) {
    if (i >= transfers_.size()) continue;
    const Transfer part = transfers_[i];
    if (part.state != Transfer::State::asked || part.host != old) continue;
    remove(transfers_[i]);
    next_source(part, now, out);
  }
}

void Receiver::tick(Nanos now, Actions& out) {
  expire(now, out);
  for (size_t i = 0; i < demands_.size(); ++i) {
    if (demands_[i].hedge_at <= now) hedge(i, now, out);
  }
  release_watches(out);
  std::erase_if(shunned_, [&](const Shunned& entry) { return entry.until <= now; });
  pump(now, out);
}

}  // namespace snow::exchange
