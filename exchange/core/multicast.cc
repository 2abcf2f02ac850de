#include "exchange/core/multicast.h"

#include "exchange/core/runs.h"

namespace snow::exchange {
namespace {

constexpr uint64_t kPacketsToJudge = 8;
constexpr double kSmoothing = 0.3;
constexpr double kCut = 0.7;
constexpr double kSlowStart = 1.3;  // until the first cut
constexpr double kSteps = 50;       // from nothing to the full rate
constexpr double kBaseLossMost = 0.25;
constexpr uint32_t kMissedMost = 16;
constexpr Nanos kReportValid = kSecond;

}  // namespace

Multicast::Multicast(uint32_t pages, const MulticastOptions& options)
    : options_(options),
      coming_(options.on ? pages : 0),
      sent_(options.on ? pages : 0),
      urgent_(options.on ? pages : 0),
      sent_after_(options.on ? pages : 0),
      rate_(static_cast<double>(options.rate_start)) {}

const Multicast::Listener* Multicast::slot(HostNumber host) const {
  if (host >= slots_.size() || slots_[host] < 0) return nullptr;
  return &listeners_[static_cast<size_t>(slots_[host])];
}

Multicast::Listener* Multicast::slot(HostNumber host) {
  if (host >= slots_.size() || slots_[host] < 0) return nullptr;
  return &listeners_[static_cast<size_t>(slots_[host])];
}

bool Multicast::hears(HostNumber host) const {
  const Listener* const listener = slot(host);
  return listener != nullptr && listener->hears;
}

void Multicast::set_hears(Listener& listener, bool hears) {
  if (listener.hears == hears) return;
  listener.hears = hears;
  hearing_ += hears ? 1 : -1;
}

bool Multicast::subscribe(HostNumber host, Nanos now) {
  if (!options_.on) return false;
  if (listens(host)) return true;
  std::erase_if(left_, [&](const Left& entry) { return entry.until <= now; });
  for (const Left& entry : left_) {
    if (entry.host == host) return false;
  }
  if (host >= slots_.size()) {
    slots_.resize(size_t{host} + 1, -1);
    joined_.resize(size_t{host} + 1, 0);
  }
  if (joined_[host] == 0) {
    if (joins_ < UINT16_MAX) ++joins_;
    joined_[host] = joins_;
  }
  Listener listener;
  listener.host = host;
  listener.since = now;
  listener.joined = joined_[host];
  const auto at =
      std::partition_point(listeners_.begin(), listeners_.end(),
                           [&](const Listener& other) { return other.joined <= listener.joined; });
  listeners_.insert(at, listener);
  number_slots();
  hello_due_ = true;
  return true;
}

void Multicast::unsubscribe(HostNumber host) {
  Listener* const listener = slot(host);
  if (listener == nullptr) return;
  set_hears(*listener, false);
  listeners_.erase(listeners_.begin() + slots_[host]);
  slots_[host] = -1;
  number_slots();
  if (listeners_.empty()) drop_queue();
}

void Multicast::number_slots() {
  for (size_t i = 0; i < listeners_.size(); ++i) {
    slots_[listeners_[i].host] = static_cast<int32_t>(i);
  }
}

void Multicast::drop_queue() {
  for (auto& queue : queues_) {
    for (const Run& run : queue) {
      coming_.reset(run);
      urgent_.reset(run);
    }
    queue.clear();
  }
  for (uint64_t& pages : queued_pages_) pages = 0;
}

void Multicast::report(HostNumber host, uint64_t got, uint64_t missed, Nanos now) {
  Listener* const listener = slot(host);
  if (listener == nullptr) return;
  if (got > 0) {
    set_hears(*listener, true);
    listener->missed_in_a_row = 0;
  }
  listener->reported = now;
  if (got + missed >= kPacketsToJudge) {
    const double loss = static_cast<double>(missed) / static_cast<double>(got + missed);
    listener->loss += kSmoothing * (loss - listener->loss);
    if (listener->loss <= options_.hopeless_loss) {
      listener->lossy_since = kNever;
    } else if (listener->lossy_since == kNever) {
      listener->lossy_since = now;
    }
  }
  adapt(now);
}

void Multicast::note_missed(HostNumber host) {
  Listener* const listener = slot(host);
  if (listener == nullptr) return;
  if (++listener->missed_in_a_row >= kMissedMost) set_hears(*listener, false);
}

void Multicast::adapt(Nanos now) {
  if (adapted_at_ != INT64_MIN && now - adapted_at_ < options_.adapt_interval) return;
  double worst = 0;
  for (const Listener& listener : listeners_) {
    const bool counts = listener.hears && listener.lossy_since == kNever &&
                        listener.reported != INT64_MIN && now - listener.reported < kReportValid;
    if (counts) worst = std::max(worst, listener.loss);
  }
  adapted_at_ = now;
  refill(now);
  if (worst < base_loss_ / 2) base_loss_ = worst;
  if (worst <= base_loss_ + options_.loss_high) {
    loss_at_cut_ = 0;
    const double most = static_cast<double>(options_.rate_most);
    rate_ = std::min(cut_before_ ? rate_ + most / kSteps : rate_ * kSlowStart, most);
    return;
  }
  // Three cuts without a change: it is not our rate.
  if (loss_at_cut_ > 0 && rate_ <= static_cast<double>(options_.rate_least) * 4 &&
      worst > loss_at_cut_ * 0.7) {
    base_loss_ = std::min(worst, kBaseLossMost);
    loss_at_cut_ = 0;
    return;
  }
  if (loss_at_cut_ == 0) loss_at_cut_ = worst;
  cut_before_ = true;
  rate_ = std::max(rate_ * kCut, static_cast<double>(options_.rate_least));
}

void Multicast::refill(Nanos now) {
  const double depth = options_.burst_bytes;
  if (tokens_at_ == INT64_MIN) {
    tokens_ = depth;
  } else {
    tokens_ = std::min(depth, tokens_ + rate_ * static_cast<double>(now - tokens_at_) / 1e9);
  }
  tokens_at_ = now;
}

double Multicast::queued_bytes(Lane lane) const {
  uint64_t pages = 0;
  for (size_t i = 0; i <= static_cast<size_t>(lane); ++i) pages += queued_pages_[i];
  return static_cast<double>(pages * kPageBytes);
}

bool Multicast::heard(HostNumber host, uint32_t page) const {
  return was_sent(page) && host < joined_.size() && joined_[host] != 0 &&
         joined_[host] <= sent_after_[page];
}

size_t Multicast::listeners_before(uint32_t page) const {
  if (!was_sent(page)) return 0;
  const auto end = std::partition_point(
      listeners_.begin(), listeners_.end(),
      [&](const Listener& listener) { return listener.joined <= sent_after_[page]; });
  return static_cast<size_t>(end - listeners_.begin());
}

bool Multicast::has_room(Lane lane) const {
  if (hearing_ == 0) {  // only to find out
    const size_t queued = queues_[0].size() + queues_[1].size() + queues_[2].size();
    if (bursts_ + queued >= options_.probe_bursts) return false;
  }
  const Nanos most = lane == Lane::demand ? options_.queue_most_demand : options_.queue_most;
  return queued_bytes(lane) / rate_ * 1e9 < static_cast<double>(most);
}

void Multicast::queue(Run run, Lane lane) {
  coming_.set(run);
  if (lane == Lane::demand) urgent_.set(run);
  queues_[static_cast<size_t>(lane)].push_back(run);
  queued_pages_[static_cast<size_t>(lane)] += run.count;
}

void Multicast::hurry(Run run) {
  const uint64_t late = low_bits(run.count) & coming_.bits(run.first) & ~sent_.bits(run.first) &
                        ~urgent_.bits(run.first);
  for_each_run(late, run.first, [&](Run piece) { queue(piece, Lane::demand); });
}

Nanos Multicast::wait_for(Lane lane) const {
  const double bytes = queued_bytes(lane) + kMaxRunPages * kPageBytes;
  const double ahead = std::max(0.0, bytes - tokens_);
  // Others at higher priority may come between.
  return static_cast<Nanos>(1.5e9 * ahead / rate_) +
         (lane == Lane::demand ? options_.wait_slack : 4 * options_.wait_slack);
}

std::optional<Run> Multicast::next(Nanos now) {
  expire(now);
  if (ready_at(now) > now) return std::nullopt;
  refill(now);
  if (hello_due_) {
    hello_due_ = false;
    return Run{};
  }
  for (size_t lane = 0; lane < 3; ++lane) {
    while (!queues_[lane].empty()) {
      const Run run = queues_[lane].front();
      queues_[lane].pop_front();
      queued_pages_[lane] -= run.count;
      // What went out by another queue meanwhile is left out.
      const bool bulk = lane != static_cast<size_t>(Lane::demand);
      uint64_t open = low_bits(run.count) & (bulk ? ~urgent_.bits(run.first) : ~uint64_t{0});
      if (open == 0) continue;
      const auto skip = static_cast<uint32_t>(std::countr_zero(open));
      const Run piece{run.first + skip, static_cast<uint32_t>(std::countr_one(open >> skip))};
      if (piece.end() < run.end()) {
        const Run rest{piece.end(), run.end() - piece.end()};
        queues_[lane].push_front(rest);
        queued_pages_[lane] += rest.count;
      }
      tokens_ -= double{kPageBytes} * piece.count;
      if (bursts_++ == 0) first_burst_ = now;
      sent_.set(piece);
      std::fill_n(sent_after_.begin() + piece.first, piece.count, joins_);
      windows_.push_back({piece, now + options_.duplicate_window});
      return piece;
    }
  }
  return std::nullopt;
}

Nanos Multicast::ready_at(Nanos now) const {
  if (hello_due_) return now;
  if (queues_[0].empty() && queues_[1].empty() && queues_[2].empty()) return kNever;
  if (tokens_at_ == INT64_MIN) return now;
  const double tokens = tokens_ + rate_ * static_cast<double>(now - tokens_at_) / 1e9;
  if (tokens > 0) return now;
  return now + 1 + static_cast<Nanos>(-tokens / rate_ * 1e9);
}

void Multicast::expire(Nanos now) {
  while (!windows_.empty() && windows_.front().until <= now) {
    coming_.reset(windows_.front().run);
    urgent_.reset(windows_.front().run);
    windows_.pop_front();
  }
}

void Multicast::tick(Nanos now, std::vector<HostNumber>& leave) {
  expire(now);
  if (!enabled(now)) return;
  const bool tried = bursts_ >= options_.probe_bursts && now - first_burst_ >= options_.probe_time;
  if (hearing_ == 0) {
    if (!tried) return;
    off_until_ = now + options_.off_time;
    bursts_ = 0;
    drop_queue();
    return;
  }
  for (size_t i = listeners_.size(); i-- > 0;) {
    const Listener listener = listeners_[i];
    const bool lossy =
        listener.lossy_since != kNever && now - listener.lossy_since >= options_.hopeless_time;
    const bool deaf = !listener.hears && tried && now - listener.since >= options_.hopeless_time &&
                      listener.missed_in_a_row >= kMissedMost;
    if (!lossy && !deaf) continue;
    leave.push_back(listener.host);
    left_.push_back({listener.host, now + options_.readmit_time});
    unsubscribe(listener.host);
  }
}

void Multicast::forget_host(HostNumber host) {
  unsubscribe(host);
  if (host < joined_.size()) joined_[host] = 0;
  std::erase_if(left_, [&](const Left& entry) { return entry.host == host; });
}

size_t Multicast::traces_of(HostNumber host) const {
  size_t traces = listens(host) ? 1 : 0;
  for (const Left& entry : left_) traces += entry.host == host ? 1 : 0;
  return traces;
}

}  // namespace snow::exchange
