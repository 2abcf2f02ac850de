// What is fetched without a reader waiting for it: the hot set, then runs behind demanded pages,
// then the rest; how much of it at a time.
#include "exchange/core/receiver.h"
#include "exchange/core/runs.h"

namespace snow::exchange {
namespace {

constexpr size_t kNearMost = 64;

}  // namespace

// The first row of pages in the block that are in `of`, missing and not on their way.
bool Receiver::pick(uint32_t block, uint64_t of, uint32_t most, Run& run) const {
  uint64_t open = of & ~present_.block(block);
  const uint32_t first = block * 64;
  if (first + 64 > present_.size()) open &= low_bits(present_.size() - first);
  open = open == 0 ? 0 : uncovered(first, open, Cover::any);
  if (open == 0) return false;
  const auto skip = static_cast<uint32_t>(std::countr_zero(open));
  run.first = first + skip;
  run.count = std::min(most, static_cast<uint32_t>(std::countr_one(open >> skip)));
  return true;
}

void Receiver::note_near(Run run) {
  const uint32_t block = run.first / 64;
  if (!near_.empty() && near_.front().block == block) return;
  near_.push_front({block, options_.near_blocks});
  if (near_.size() > kNearMost) near_.pop_back();
}

bool Receiver::next_bulk(Run& run, Lane& lane, Nanos now) {
  const uint32_t blocks = present_.blocks();
  const uint32_t run_most = std::min(kMaxRunPages, window_);
  lane = Lane::hot;
  if (hot_left_ > 0) {
    while (hot_cursor_ < blocks && (hot_.block(hot_cursor_) & ~present_.block(hot_cursor_)) == 0) {
      ++hot_cursor_;
    }
    for (uint32_t block = hot_cursor_; block < blocks; ++block) {
      if (hot_.block(block) != 0 && pick(block, hot_.block(block), run_most, run)) return true;
    }
  }
  if (!fill_) return false;
  refill(now);
  if (rate_ > 0 && tokens_ <= 0) return false;
  lane = Lane::background;
  while (!near_.empty()) {
    Near& near = near_.front();
    if (near.left > 0 && near.block < blocks) {
      if (pick(near.block, ~uint64_t{0}, run_most, run)) return true;
      ++near.block;
      --near.left;
    } else {
      near_.pop_front();
    }
  }
  while (fill_cursor_ < blocks &&
         present_.all(overlap({fill_cursor_ * 64, 64}, {0, present_.size()}))) {
    ++fill_cursor_;
  }
  for (uint32_t block = fill_cursor_; block < blocks; ++block) {
    if (pick(block, ~uint64_t{0}, run_most, run)) return true;
  }
  return false;
}

void Receiver::refill(Nanos now) {
  if (rate_ == 0) return;
  const double most = std::max(64.0 * kPageBytes, static_cast<double>(rate_) / 20);
  if (tokens_at_ == INT64_MIN) {
    tokens_ = most;
  } else {
    tokens_ += static_cast<double>(rate_) * static_cast<double>(now - tokens_at_) / 1e9;
  }
  tokens_ = std::min(tokens_, most);
  tokens_at_ = now;
}

void Receiver::pump(Nanos now, Actions& out) {
  bulk_at_ = kNever;
  if (complete() || (hot_left_ == 0 && !fill_)) return;
  if (!origin_usable(now)) {
    bulk_at_ = origin_retry_;
    return;
  }
  uint32_t runs = 0;
  uint32_t pages = 0;
  for (const Transfer& transfer : transfers_) {
    if (transfer.lane == Lane::demand) continue;
    ++runs;
    pages += static_cast<uint32_t>(std::popcount(transfer.open));
  }
  const bool busy = std::any_of(demands_.begin(), demands_.end(),
                                [](const Demand& demand) { return !demand.watch; });
  const uint32_t most = std::min(window_, busy ? options_.bulk_window_pages_busy : window_);
  while (runs < options_.bulk_window_runs && pages < most) {
    Run run;
    Lane lane;
    if (!next_bulk(run, lane, now)) {
      // Nothing, or no tokens: then when there are some.
      if (fill_ && rate_ > 0 && tokens_ <= 0) {
        bulk_at_ = now + 1 + static_cast<Nanos>(-tokens_ * 1e9 / static_cast<double>(rate_));
      }
      return;
    }
    if (lane == Lane::background && rate_ > 0) tokens_ -= double{kPageBytes} * run.count;
    out.asks.push_back(ask_origin(run, lane, 0, now));
    ++runs;
    pages += run.count;
    if (origin_backoff_ > 0) {  // it is the probe
      bulk_at_ = origin_retry_;
      return;
    }
  }
}

}  // namespace snow::exchange
