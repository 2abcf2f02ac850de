// What asks bring.
#include "exchange/core/receiver.h"
#include "exchange/core/runs.h"

namespace snow::exchange {
namespace {

constexpr uint32_t kWindowStep = 8;  // pages, for each answer in time
constexpr double kPatienceUp = 1.25;
constexpr double kPatienceDown = 0.995;  // two in a hundred come late
constexpr double kPatienceMost = 32;

}  // namespace

Receiver::Transfer* Receiver::find(AskId ask) {
  for (Transfer& transfer : transfers_) {
    if (transfer.id == ask) return &transfer;
  }
  return nullptr;
}

void Receiver::remove(Transfer& transfer) {
  transfer = transfers_.back();
  transfers_.pop_back();
}

bool Receiver::split(AskId ask, Run run, Transfer& part) {
  Transfer* const transfer = find(ask);
  if (transfer == nullptr || transfer->state != Transfer::State::asked) return false;
  run = overlap(run, transfer->run);
  const uint64_t mask = low_bits(run.count);
  part = *transfer;
  part.run = run;
  part.open = moved(transfer->open, transfer->run.first, run.first) & mask;
  if (run.count == 0 || part.open == 0) return false;
  transfer->open &= ~moved(mask, run.first, transfer->run.first);
  if (transfer->open == 0) remove(*transfer);
  return true;
}

void Receiver::sample(Transfer& transfer, Nanos now) {
  if (transfer.sampled) return;
  transfer.sampled = true;
  Latency& latency = transfer.lane == Lane::demand ? ask_latency_ : bulk_latency_;
  latency.add(now - transfer.sent);
  if (transfer.lane != Lane::demand) {
    window_ = std::min(window_ + kWindowStep, options_.bulk_window_pages);
  }
  if (latency.count() % 16 == 8) learn();
}

void Receiver::pages(AskId ask, Run run, Nanos now, Actions& out) {
  run = overlap(run, {0, present_.size()});
  Transfer* const transfer = find(ask);
  const uint32_t before = present_.count();
  bool from_origin = true;
  if (transfer != nullptr) {
    sample(*transfer, now);
    from_origin = transfer->host == origin_;
    if (from_origin) origin_answered(now, out);
  }
  arrived(run, now, out);
  (from_origin ? counters_.pages_origin : counters_.pages_peer) += present_.count() - before;
}

void Receiver::redirect(AskId ask, Run run, std::span<const HostNumber> hosts, bool no_wait,
                        Nanos now, Actions& out) {
  Transfer part;
  if (!split(ask, run, part)) return;
  origin_answered(now, out);
  // Only the origin may send us on: a peer that does is no source.
  if (part.host == origin_) {
    ++counters_.redirects;
    part.candidates = 0;
    for (const HostNumber host : hosts) {
      if (part.candidates < kMaxCandidates && host != origin_ && !shunned(host, now)) {
        part.hosts[part.candidates++] = host;
      }
    }
    // The best is the first; they are taken from the end.
    std::reverse(part.hosts.begin(), part.hosts.begin() + part.candidates);
    part.no_wait = no_wait;
    part.no_redirect = part.candidates == 0;
  }
  for (Demand& demand : demands_) {  // the new source has its own time
    if (!demand.watch && overlap(demand.run, run).count > 0) {
      demand.hedge_at = std::max(demand.hedge_at, now + hedge_delay_);
    }
  }
  next_source(part, now, out);
}

void Receiver::coming(AskId ask, Run run, Nanos wait, Nanos now, Actions& out) {
  Transfer part;
  if (!split(ask, run, part)) return;
  origin_answered(now, out);
  part.id = ++last_id_;
  part.state = Transfer::State::coming;
  if (part.lane != Lane::demand) wait = static_cast<Nanos>(static_cast<double>(wait) * patience_);
  part.until = now + std::clamp<Nanos>(wait, kMillisecond, kSecond);
  transfers_.push_back(part);
  for (Demand& demand : demands_) {  // then it is asked again anyway
    if (!demand.watch && overlap(demand.run, run).count > 0) {
      demand.hedge_at = std::max(demand.hedge_at, part.until + hedge_delay_);
    }
  }
}

// A multicast that comes when it was asked for again has left the origin twice. The origin knows
// how long its queue is, not how busy the network and this host are.
void Receiver::learn_patience(Run run) {
  for (const Transfer& transfer : transfers_) {
    if (transfer.lane == Lane::demand || overlap(transfer.run, run).count == 0) continue;
    if (transfer.state == Transfer::State::coming) {
      patience_ = std::max(patience_ * kPatienceDown, 1.0);
    } else if (transfer.missed) {
      patience_ = std::min(patience_ * kPatienceUp, kPatienceMost);
    }
  }
}

void Receiver::retry(AskId ask, Run run, Nanos after, Nanos now, Actions& out) {
  Transfer part;
  if (!split(ask, run, part)) return;
  ++counters_.retries;
  if (part.host == origin_) origin_answered(now, out);
  if (!part.again) asked_.reset(part.run);  // it did not count us
  if (part.lane != Lane::demand && wanted_by_demand(part.run)) part.lane = Lane::demand;
  park(part, now + std::clamp<Nanos>(after, kMillisecond, options_.backoff_most), false);
  release_watches(out);
}

void Receiver::absent(AskId ask, Run run, Nanos now, Actions& out) {
  Transfer part;
  if (!split(ask, run, part)) return;
  if (part.host == origin_) {
    lose(part, now, out);
  } else {
    next_source(part, now, out);
  }
}

void Receiver::wrong(AskId ask, Run, Nanos now, Actions& out) {
  Transfer* const transfer = find(ask);
  ++counters_.wrong;
  if (transfer == nullptr) return;
  const Transfer part = *transfer;
  remove(*transfer);
  if (part.host == origin_) {
    lose(part, now, out);  // the connection's fault: bytes of the origin are right by definition
    return;
  }
  shun(part.host, kNever);
  out.reports.push_back({Report::Kind::wrong, part.host});
  next_source(part, now, out);
}

void Receiver::finished(AskId ask, Nanos now, Actions& out) {
  Transfer* const transfer = find(ask);
  if (transfer == nullptr || transfer->state != Transfer::State::asked) return;
  const Transfer part = *transfer;
  remove(*transfer);
  if (part.host == origin_) {
    lose(part, now, out);
  } else {
    next_source(part, now, out);
  }
}

void Receiver::unknown(AskId ask, Nanos now, Actions& out) { failed(ask, now, out); }

void Receiver::failed(AskId ask, Nanos now, Actions& out) {
  Transfer* const transfer = find(ask);
  if (transfer == nullptr || transfer->state != Transfer::State::asked) return;
  const Transfer part = *transfer;
  remove(*transfer);
  lose(part, now, out);
}

}  // namespace snow::exchange
