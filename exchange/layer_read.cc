// A read: from the cache file, or by asking and waiting.
#include <algorithm>
#include <cstring>

#include "base/file.h"
#include "exchange/layer_state.h"

namespace snow::exchange {
namespace {

uint64_t mask_of(uint32_t count) { return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

}  // namespace

Result<void> LayerState::read(uint64_t offset, std::span<std::byte> into) {
  if (offset > descriptor_.size_bytes || into.size() > descriptor_.size_bytes - offset) {
    return fail(Code::corrupt, "layer {}: a read at {}+{} of {} bytes", path_, offset, into.size(),
                descriptor_.size_bytes);
  }
  while (!into.empty()) {
    const uint64_t end =
        std::min(offset + into.size(),
                 offset_of(static_cast<uint32_t>(offset / kPageBytes)) + kMaxRunPages * kPageBytes);
    const auto part = into.first(end - offset);
    if (!cache_->read(offset, part)) SNOW_TRY(fetch(offset, part));
    offset = end;
    into = into.subspan(part.size());
  }
  return {};
}

// From the cache and from what the disk did not take; false: not all of it is there (any more).
bool LayerState::assemble(uint64_t offset, std::span<std::byte> into) {
  if (cache_->read(offset, into)) return true;
  while (!into.empty()) {
    const auto page = static_cast<uint32_t>(offset / kPageBytes);
    const size_t skip = offset % kPageBytes;
    const auto part = into.first(std::min(into.size(), kPageBytes - skip));
    if (!cache_->read(offset, part)) {
      const std::lock_guard lock(mutex_);
      const auto at = aside_.find(page);
      if (at == aside_.end()) {
        // The core has to know, or it would never ask again.
        if (core_.present(page) && !cache_->has(page)) core_.drop({page, 1});
        return false;
      }
      std::memcpy(part.data(), at->second.data() + skip, part.size());
    }
    offset += part.size();
    into = into.subspan(part.size());
  }
  return true;
}

Result<void> LayerState::fetch(uint64_t offset, std::span<std::byte> into) {
  const auto first = static_cast<uint32_t>(offset / kPageBytes);
  const auto end = static_cast<uint32_t>((offset + into.size() - 1) / kPageBytes) + 1;
  shared_->active_at.store(monotonic_ns(), std::memory_order_relaxed);
  for (;;) {
    Waiter waiter;
    waiter.run = {first, end - first};
    waiter.offset = offset;
    waiter.into = into;
    Want want;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) break;
      actions_.clear();
      want = core_.want(waiter.run, monotonic_ns(), actions_);
      if (want.state != Want::State::present) {
        waiter.demand = want.demand;
        begin_wait(waiter);
      }
      act(actions_, &waiter);
    }
    if (want.state != Want::State::present) {
      std::optional<Ask> mine;
      if (want.state == Want::State::ask) mine = want.ask;
      if (!do_asks(waiter, mine)) break;
      if (waiter.filled == mask_of(waiter.run.count)) return {};
    }
    if (assemble(offset, into)) return {};
  }
  return fail(Code::unavailable, "layer {}: the exchange was stopped", path_);
}

// Until the waiter's pages are there; false: the exchange stops.
bool LayerState::do_asks(Waiter& waiter, std::optional<Ask> first) {
  if (first && !try_ask(*first, &waiter)) submit(*first);
  std::unique_lock lock(mutex_);
  while (!waiter.arrived && !stopping_) {
    if (waiter.todo.empty()) {
      waiter.wake.wait(lock);
      continue;
    }
    const Ask ask = waiter.todo.back();
    waiter.todo.pop_back();
    lock.unlock();
    if (!try_ask(ask, &waiter)) submit(ask);
    lock.lock();
  }
  for (const Ask& ask : waiter.todo) submit(ask);
  const bool arrived = waiter.arrived;
  end_wait(waiter);
  return arrived;
}

void LayerState::begin_wait(Waiter& waiter) { waiters_.push_back(&waiter); }

void LayerState::end_wait(Waiter& waiter) {
  std::erase(waiters_, &waiter);
  if (!waiter.arrived) core_.cancel(waiter.demand);
}

void LayerState::act(Actions& actions, Waiter* self) {
  for (const DemandId id : actions.arrived) {
    for (Waiter* waiter : waiters_) {
      if (waiter->demand != id) continue;
      waiter->arrived = true;
      if (waiter == self) continue;
      if (waiter->connection != nullptr) waiter->connection->interrupt();
      waiter->wake.notify_one();
    }
  }
  for (const Ask& ask : actions.asks) {
    if (ask.lane != Lane::demand) {
      bulk_.push_back(ask);
    } else if (self != nullptr && ask.demand == self->demand && !self->arrived) {
      self->todo.push_back(ask);
    } else {
      submit(ask);
    }
  }
  for (const Report& report : actions.reports) {
    if (reports_.size() >= wire::kMaxReports) break;
    reports_.push_back({report.kind == Report::Kind::wrong, shared_->hosts.name(report.host)});
    control_due_ = std::min(control_due_, monotonic_ns() + kSecond);
  }
  if (!bulk_.empty()) start_bulk();
  shared_->alarm.by(std::min(core_.next_tick(), control_due_));
}

}  // namespace snow::exchange
