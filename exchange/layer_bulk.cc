// What nobody waits for: the hot set and the fill, a few asks ahead on each connection.
#include <algorithm>

#include "base/file.h"
#include "exchange/layer_state.h"

namespace snow::exchange {
namespace {

constexpr size_t kAhead = 4;  // asks under way on one connection: the next answer is ready at once

int left_ms(Nanos deadline) {
  const Nanos left = deadline - monotonic_ns();
  return left <= 0 ? 0 : static_cast<int>((left + kMillisecond - 1) / kMillisecond);
}

}  // namespace

void LayerState::start_bulk() {
  if (stopping_ || bulk_workers_ >= shared_->options.fill_connections) return;
  if (bulk_workers_ > 0 && bulk_.size() <= kAhead / 2) return;  // they will do
  ++bulk_workers_;
  shared_->bulk.submit([layer = shared_from_this()] {
    if (const Active active(*layer); active) layer->bulk_session();
  });
}

void LayerState::apply_fill() {
  const uint64_t most = shared_->options.fill_bytes_per_second;
  const uint64_t rate =
      fill_rate_ == 0 ? most : (most == 0 ? fill_rate_ : std::min(most, fill_rate_));
  // Until the map of zeros is there, the fill would ask for them.
  core_.set_fill(fill_ && map_done_ && disk_full_until_ == 0, rate);
  shared_->alarm.by(core_.next_tick());
}

// Asks for the host of those that are under way, or for any if there are none. False: nothing is
// left, the session is over.
bool LayerState::next_bulk_asks(std::deque<Ask>& outstanding, std::vector<Ask>& to_send) {
  const std::lock_guard lock(mutex_);
  to_send.clear();
  while (!stopping_ && outstanding.size() < kAhead && !bulk_.empty()) {
    const auto at = std::find_if(bulk_.begin(), bulk_.end(), [&](const Ask& ask) {
      return outstanding.empty() || ask.host == outstanding.front().host;
    });
    if (at == bulk_.end()) break;
    outstanding.push_back(*at);
    to_send.push_back(*at);
    bulk_.erase(at);
  }
  if (!outstanding.empty()) return true;
  --bulk_workers_;
  return false;
}

void LayerState::bulk_session() {
  Buffers buffers;
  std::deque<Ask> outstanding;
  std::vector<Ask> to_send;
  std::optional<peer::Lease> lease;
  HostNumber host = kNoHost;
  const auto give_back = [&] {
    if (lease) shared_->connections.give_back(host, true, std::move(*lease));
    lease.reset();
  };
  const auto give_up = [&] {
    if (lease) lease->drop();
    lease.reset();
    for (const Ask& ask : outstanding) ask_failed(ask, nullptr);
    outstanding.clear();
  };
  while (next_bulk_asks(outstanding, to_send)) {
    if (outstanding.front().host != host) {
      give_back();
      host = outstanding.front().host;
    }
    if (!lease) lease = bulk_connection(outstanding.front());
    if (!lease) {
      give_up();
      continue;
    }
    bool good = true;
    {
      const InUse in_use(*this, **lease, nullptr);
      for (const Ask& ask : to_send) good = good && send_fetch(**lease, ask, buffers.out);
      if (good) good = take_answer(**lease, outstanding.front(), buffers);
    }
    if (good) {
      outstanding.pop_front();
    } else {
      give_up();
    }
  }
  give_back();
}

std::optional<peer::Lease> LayerState::bulk_connection(const Ask& ask) {
  while (auto lease = shared_->connections.idle(ask.host, true)) {
    if ((*lease)->idle_and_alive()) return lease;
    lease->drop();
  }
  const int patience_ms = std::min(left_ms(ask.deadline), shared_->options.request_timeout_ms);
  auto lease = shared_->connections.fresh(shared_->hosts.name(ask.host), true, patience_ms);
  if (!lease) return std::nullopt;
  return std::move(*lease);
}

bool LayerState::take_answer(peer::Connection& connection, const Ask& ask, Buffers& buffers) {
  for (bool last = false; !last;) {
    const auto type = connection.receive_into(buffers.in, left_ms(ask.deadline));
    if (!type || !take_part(*type, buffers.in, ask, nullptr, buffers, last)) return false;
  }
  return true;
}

}  // namespace snow::exchange
