// Relay: pages for another host that the origin sent here; and what is dropped to make room.
#include <algorithm>
#include <chrono>

#include "base/file.h"
#include "exchange/layer_state.h"
#include "exchange/responder.h"

namespace snow::exchange {
namespace {

// Less than what the other host waits for before it goes elsewhere.
constexpr auto kServeWait = std::chrono::milliseconds(400);

}  // namespace

void LayerState::await_run(const wire::Fetch& fetch) {
  std::unique_lock lock(mutex_);
  const Serve serve = core_.serve(fetch.run, fetch.no_wait, monotonic_ns());
  if (serve.state != Serve::State::wait) return;
  Waiter waiter;
  waiter.demand = serve.watch;
  begin_wait(waiter);
  waiter.wake.wait_for(lock, kServeWait, [&] { return waiter.arrived || stopping_; });
  end_wait(waiter);
}

// The next stretch that is here, or is not; true: it is, and in `room`. The cache is not held
// while it is sent: who closes the layer would wait for the slowest host.
bool LayerState::next_stretch(Run rest, std::span<std::byte> room, Run& part) {
  part = rest;
  const Active active(*this);
  if (!active) return false;
  const Bitmap::Stretch stretch = cache_->present().stretch(rest.first, rest.end());
  part.count = stretch.end - rest.first;
  // Dropped in between: it is not.
  return stretch.set &&
         cache_->read(offset_of(part.first), room.first(size_t{part.count} * kPageBytes));
}

void LayerState::serve(const wire::Fetch& fetch, Responder& responder) {
  if (fetch.run.end() > pages_of(descriptor_.size_bytes)) {
    (void)responder.notice(wire::Type::absent, fetch, fetch.run, 0, true);
    return;
  }
  if (const Active active(*this); active) await_run(fetch);
  Run rest = fetch.run;
  while (rest.count > 0) {
    Run part;
    const bool here = next_stretch(rest, responder.room(rest.count), part);
    rest = {part.end(), rest.end() - part.end()};
    const bool last = rest.count == 0;
    if (!here) {
      if (!responder.notice(wire::Type::absent, fetch, part, 0, last)) return;
      continue;
    }
    const auto sent = responder.pages(fetch, part, last);
    if (!sent) return;
    const std::lock_guard lock(mutex_);
    to_peers_.bytes += sent->bytes;
    to_peers_.pages += sent->pages;
  }
}

// Asked, not remembered: it may have withdrawn the image, and then this may be the last copy.
bool LayerState::origin_has_it() {
  wire::Buffer request, answer;
  wire::encode(wire::About{0, descriptor_.id, {0, 1}}, request);
  const auto type = call_origin(wire::Type::map, request, answer);
  return type && *type == static_cast<uint8_t>(wire::Type::zeros);
}

// Least needed: what no read has asked for lately is not known here (lazyfs and the kernel have
// what is read often), so it goes from the end of the image, where the hot set goes last.
uint64_t LayerState::evict(uint64_t bytes) {
  const Active active(*this);
  if (!active || cache_->present_pages() == 0 || !origin_has_it()) return 0;
  {
    const std::lock_guard lock(mutex_);
    if (fill_ && !complete_) return 0;  // it would be fetched again at once
    fill_ = false;
    apply_fill();
  }
  const auto is_hot = [&](uint32_t page) {
    return std::any_of(descriptor_.hot.begin(), descriptor_.hot.end(),
                       [&](const Run& run) { return run.contains(page); });
  };
  uint64_t dropped = 0;
  for (const bool hot : {false, true}) {
    for (uint32_t end = cache_->pages(); end > 0 && dropped < bytes;) {
      const uint32_t first = (end - 1) / kMaxRunPages * kMaxRunPages;
      const Run block{first, end - first};
      end = first;
      if (is_hot(first) != hot) continue;
      const uint32_t count = cache_->drop(block.first, block.count);
      if (count == 0) continue;
      dropped += uint64_t{count} * kPageBytes;
      const std::lock_guard lock(mutex_);
      core_.drop(block);
      complete_ = false;
      sealed_ = false;
      have_told_ = false;
    }
  }
  return dropped;
}

}  // namespace snow::exchange
