// Asking another host for pages, on the thread that wants them or on one of the pool's.
#include <algorithm>

#include "base/file.h"
#include "exchange/layer_state.h"

namespace snow::exchange {
namespace {

// What is left until `deadline`, rounded up. (A whole number right after the start: the socket's
// timeout need not be set anew for each request.)
int left_ms(Nanos deadline) {
  const Nanos left = deadline - monotonic_ns();
  return left <= 0 ? 0 : static_cast<int>((left + kMillisecond - 1) / kMillisecond);
}

}  // namespace

LayerState::Active::Active(LayerState& layer) : layer_(layer) {
  const std::lock_guard lock(layer_.mutex_);
  good_ = !layer_.closed_ && !layer_.stopping_;
  if (good_) ++layer_.active_;
}

LayerState::Active::~Active() {
  if (!good_) return;
  const std::lock_guard lock(layer_.mutex_);
  --layer_.active_;
  layer_.changed_.notify_all();
}

LayerState::InUse::InUse(LayerState& layer, peer::Connection& connection, Waiter* self)
    : layer_(layer), connection_(connection), self_(self) {
  const std::lock_guard lock(layer_.mutex_);
  if (layer_.stopping_ || (self_ != nullptr && self_->arrived)) connection_.interrupt();
  if (self_ != nullptr) {
    self_->connection = &connection_;
  } else {
    layer_.in_use_.push_back(&connection_);
  }
}

LayerState::InUse::~InUse() {
  const std::lock_guard lock(layer_.mutex_);
  if (self_ != nullptr) {
    self_->connection = nullptr;
  } else {
    std::erase(layer_.in_use_, &connection_);
  }
}

void LayerState::submit(const Ask& ask) {
  shared_->demand.submit([layer = shared_from_this(), ask] {
    if (const Active active(*layer); active) layer->run_ask(ask);
  });
}

bool LayerState::try_ask(const Ask& ask, Waiter* self) {
  std::optional<peer::Lease> lease = shared_->connections.idle(ask.host, false);
  return lease && ask_on(std::move(*lease), true, ask, self);
}

void LayerState::run_ask(const Ask& ask) {
  // The idle ones may all be dead: the host was restarted.
  while (auto lease = shared_->connections.idle(ask.host, false)) {
    if (ask_on(std::move(*lease), true, ask, nullptr)) return;
  }
  const int patience_ms = std::min(left_ms(ask.deadline), shared_->options.request_timeout_ms);
  auto lease = shared_->connections.fresh(shared_->hosts.name(ask.host), false, patience_ms);
  if (lease) {
    ask_on(std::move(*lease), false, ask, nullptr);
  } else {
    ask_failed(ask, nullptr);
  }
}

// False: the connection had died before it was used; another may do.
bool LayerState::ask_on(peer::Lease lease, bool reused, const Ask& ask, Waiter* self) {
  Talk result;
  {
    const InUse in_use(*this, *lease, self);
    result = talk(*lease, ask, self);
  }
  if (result == Talk::done) {
    shared_->connections.give_back(ask.host, false, std::move(lease));
    return true;
  }
  lease.drop();
  if (result == Talk::stale && reused) {
    const std::lock_guard lock(mutex_);
    return self != nullptr && self->arrived;  // interrupted: its pages came from elsewhere
  }
  ask_failed(ask, self);
  return true;
}

void LayerState::ask_failed(const Ask& ask, Waiter* self) {
  const std::lock_guard lock(mutex_);
  actions_.clear();
  core_.failed(ask.id, monotonic_ns(), actions_);  // ignored where the core was told already
  act(actions_, self);
}

Result<void> LayerState::send_fetch(peer::Connection& connection, const Ask& ask,
                                    wire::Buffer& out) {
  wire::Fetch fetch;
  fetch.tag = static_cast<uint16_t>(ask.id);
  fetch.image = descriptor_.id;
  fetch.run = ask.run;
  fetch.lane = ask.lane;
  fetch.no_redirect = ask.no_redirect;
  fetch.again = ask.again;
  fetch.no_wait = ask.no_wait;
  wire::encode(fetch, out);
  return connection.send(static_cast<uint8_t>(wire::Type::fetch), out, left_ms(ask.deadline));
}

LayerState::Talk LayerState::talk(peer::Connection& connection, const Ask& ask, Waiter* self) {
  thread_local Buffers buffers;
  if (!send_fetch(connection, ask, buffers.out)) return Talk::stale;
  bool last = false;
  for (bool first = true; !last; first = false) {
    const auto type = connection.receive_into(buffers.in, left_ms(ask.deadline));
    if (!type) {
      return first && type.error().code == Code::unavailable ? Talk::stale : Talk::failed;
    }
    if (!take_part(*type, buffers.in, ask, self, buffers, last)) return Talk::failed;
  }
  return Talk::done;
}

}  // namespace snow::exchange
