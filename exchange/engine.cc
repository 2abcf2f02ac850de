#include "exchange/engine.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"

namespace snow::exchange {
namespace {

constexpr size_t kMaxRequestBytes = 16 * 1024;
constexpr int kErrorMs = 1000;
// While reads are under way the ticker looks around so often that no read has to wake it; that
// matters on the way of a demand.
constexpr Nanos kActiveTick = 3 * kMillisecond;
constexpr Nanos kActiveTime = 50 * kMillisecond;
constexpr Nanos kOfferTick = 100 * kMillisecond;
constexpr Nanos kSweepEvery = 20 * kSecond;
constexpr size_t kOpenedMost = 65536;
constexpr size_t kMaxDescriptorFile = size_t{8} << 20;

// Not synced: after a crash of the host no layer is opened again that is not sealed.
Result<void> write_descriptor(const Descriptor& descriptor, const std::string& path) {
  const std::string part = path + ".part";
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out << to_json(descriptor).dump();
  out.close();
  if (!out || ::rename(part.c_str(), path.c_str()) != 0) {
    auto failed = fail_errno(Code::host_failed, "{}: cannot be written", path);
    ::unlink(part.c_str());
    return failed;
  }
  return {};
}

}  // namespace

void Alarm::wait_until(Nanos when) {
  std::unique_lock lock(mutex_);
  at_.store(std::clamp<Nanos>(when, 0, at_.load(std::memory_order_relaxed)),
            std::memory_order_release);
  for (;;) {
    const Nanos left = at_.load(std::memory_order_relaxed) - monotonic_ns();
    if (left <= 0) return;
    wake_.wait_for(lock, std::chrono::nanoseconds(std::min(left, 10 * kSecond)));
  }
}

Engine::Engine(peer::Pool& pool, Options options)
    : shared_(std::make_shared<Shared>(pool, std::move(options))) {
  if (shared_->options.multicast.enabled) start_multicast();
  ticker_ = std::thread([this] { tick_loop(); });
}

void Engine::start_multicast() {
  receiver_ = std::make_unique<MulticastReceiver>(shared_);
  if (shared_->options.key_file.empty()) return;
  auto sender = MulticastSender::start(shared_, [this] { return all_offers(); });
  if (sender) {
    sender_ = std::move(*sender);
  } else {
    log_warn("{}; this host sends no multicast", sender.error().message);
  }
}

Engine::~Engine() { stop(); }

void Engine::stop() {
  if (shared_->stopping.exchange(true)) return;
  for (const auto& layer : all_layers()) layer->stop();
  shared_->alarm.by(0);
  ticker_.join();
  if (sender_) sender_->stop();
  if (receiver_) receiver_->stop();
  shared_->demand.stop();
  shared_->bulk.stop();
  shared_->connections.clear();
}

// The service.

void Engine::serve(peer::Server& server) {
  for (const std::string_view name : {kDemandService, kBulkService}) {
    server.add(std::string(name),
               [this](peer::Connection& connection) { serve_connection(connection); });
  }
}

void Engine::serve_connection(peer::Connection& connection) {
  if (connection.service() == kBulkService) be_nice(5);
  connection.set_limit(kMaxRequestBytes);
  Responder responder(connection, *shared_);
  wire::Buffer in;
  while (!shared_->stopping) {
    const auto type = connection.receive_into(in, -1);
    if (!type) return;
    const auto answered = answer(*type, in, responder);
    if (answered) continue;
    if (!connection.broken()) (void)connection.send_error(answered.error(), kErrorMs);
    return;
  }
}

Result<void> Engine::answer(uint8_t type, wire::Bytes payload, Responder& responder) {
  const auto kind = static_cast<wire::Type>(type);
  if (kind == wire::Type::fetch) return answer_fetch(payload, responder);
  if (kind == wire::Type::report) {
    SNOW_ASSIGN(const wire::Report report, wire::parse_report(payload));
    if (const auto offer = find_offer(report.image)) return offer->report(report, responder);
    return responder.message(wire::Type::unknown, wire::Short{report.tag, false});
  }
  if (kind != wire::Type::map && kind != wire::Type::subscribe && kind != wire::Type::unsubscribe &&
      kind != wire::Type::have) {
    return fail(Code::corrupt, "message type {}: version {} of the page protocol has none such",
                type, wire::kVersion);
  }
  SNOW_ASSIGN(const wire::About about, wire::parse_about(payload));
  const auto offer = find_offer(about.image);
  if (!offer) return responder.message(wire::Type::unknown, wire::Short{about.tag, false});
  if (kind == wire::Type::map) return offer->map(about, responder);
  if (kind == wire::Type::have) return offer->have(about, responder);
  return offer->subscribe(about, kind == wire::Type::subscribe, responder);
}

Result<void> Engine::answer_fetch(wire::Bytes payload, Responder& responder) {
  SNOW_ASSIGN(const wire::Fetch fetch, wire::parse_fetch(payload));
  if (const auto offer = find_offer(fetch.image)) return offer->fetch(fetch, responder);
  if (const auto layer = find_layer(fetch.image)) {
    layer->serve(fetch, responder);
    return {};
  }
  return responder.message(wire::Type::unknown, wire::Short{fetch.tag, false});
}

std::shared_ptr<OfferState> Engine::find_offer(const ImageId& id) const {
  const std::shared_lock lock(mutex_);
  const auto at = offers_.find(id);
  return at == offers_.end() ? nullptr : at->second;
}

std::shared_ptr<LayerState> Engine::find_layer(const ImageId& id) const {
  const std::shared_lock lock(mutex_);
  for (const auto& [path, weak] : layers_) {
    auto layer = weak.lock();
    if (layer && layer->descriptor().id == id) return layer;
  }
  return nullptr;
}

std::vector<std::shared_ptr<OfferState>> Engine::all_offers() const {
  const std::shared_lock lock(mutex_);
  std::vector<std::shared_ptr<OfferState>> all;
  for (const auto& [id, offer] : offers_) all.push_back(offer);
  return all;
}

std::vector<std::shared_ptr<LayerState>> Engine::all_layers() const {
  const std::shared_lock lock(mutex_);
  std::vector<std::shared_ptr<LayerState>> all;
  for (const auto& [path, weak] : layers_) {
    if (auto layer = weak.lock()) all.push_back(std::move(layer));
  }
  return all;
}

// Offers and layers.

Descriptor Engine::offer(std::shared_ptr<Content> content, Offer offer) {
  Descriptor descriptor;
  descriptor.id = offer.id ? *offer.id : random_image_id();
  descriptor.size_bytes = content->size();
  assert(descriptor.size_bytes > 0 && descriptor.size_bytes <= kMaxImageBytes);
  descriptor.origin = shared_->options.host;
  if (sender_ && offer.multicast) {
    if (auto group = sender_->group_of(descriptor.id)) {
      descriptor.multicast = *std::move(group);
      descriptor.origin_key = sender_->public_key();
    }
  }
  auto state =
      std::make_shared<OfferState>(shared_, descriptor, std::move(content), std::move(offer));
  const std::unique_lock lock(mutex_);
  offers_.insert_or_assign(descriptor.id, std::move(state));
  return descriptor;
}

Result<Descriptor> Engine::describe(const ImageId& id) const {
  const auto offer = find_offer(id);
  if (!offer) return fail(Code::not_found, "image {}: not offered here", to_text(id));
  return offer->describe();
}

void Engine::withdraw(const ImageId& id) {
  const std::unique_lock lock(mutex_);
  offers_.erase(id);
}

Result<std::shared_ptr<RemoteLayer>> Engine::open(const Descriptor& descriptor,
                                                  const std::string& path) {
  if (shared_->stopping) return fail(Code::unavailable, "layer {}: the exchange stopped", path);
  const std::unique_lock lock(mutex_);
  std::weak_ptr<LayerState>& slot = layers_[path];
  if (const auto other = slot.lock(); other != nullptr && !other->closed()) {
    return fail(Code::exists, "layer {}: is open already", path);
  }
  const bool reopened = ::access((path + ".map").c_str(), F_OK) == 0;
  SNOW_ASSIGN(auto cache, CacheFile::open(path, descriptor.id, descriptor.size_bytes));
  SNOW_TRY(write_descriptor(descriptor, path + ".json"));
  auto state = std::make_shared<LayerState>(shared_, descriptor, std::move(cache));
  slot = state;
  if (opened_.size() >= kOpenedMost) opened_.erase(opened_.begin());
  const bool first = opened_.insert(descriptor.id).second;
  state->start(reopened || !first);
  if (receiver_ && descriptor.multicast && !state->complete()) {
    if (auto joined = receiver_->join(state); !joined) {
      log_warn("{}; image {} comes by unicast", joined.error().message, to_text(descriptor.id));
    }
  }
  return std::make_shared<RemoteLayer>(std::move(state));
}

Result<std::shared_ptr<RemoteLayer>> Engine::reopen(const std::string& path) {
  SNOW_ASSIGN(const std::string text, read_file(path + ".json", kMaxDescriptorFile));
  SNOW_ASSIGN(const Descriptor descriptor,
              descriptor_from_json(nlohmann::json::parse(text, nullptr, false)));
  return open(descriptor, path);
}

uint64_t Engine::evict(uint64_t bytes) {
  uint64_t dropped = 0;
  for (const auto& layer : all_layers()) {
    if (dropped >= bytes) break;
    dropped += layer->evict(bytes - dropped);
  }
  return dropped;
}

void Engine::host_down(const std::string& host) {
  for (const auto& layer : all_layers()) layer->host_down(host);
}

void Engine::host_up(const std::string& host) {
  for (const auto& layer : all_layers()) layer->host_up(host);
}

void Engine::forget_host(const std::string& host) {
  host_down(host);
  for (const auto& offer : all_offers()) offer->forget_host(shared_->hosts.number(host));
}

nlohmann::json Engine::statistics() const {
  nlohmann::json offers = nlohmann::json::array();
  nlohmann::json layers = nlohmann::json::array();
  for (const auto& offer : all_offers()) offers.push_back(offer->statistics());
  for (const auto& layer : all_layers()) layers.push_back(layer->statistics());
  return {{"offers", offers},
          {"layers", layers},
          {"multicast",
           {{"sends", sender_ != nullptr}, {"groups", receiver_ ? receiver_->groups() : 0}}}};
}

// The ticking thread.

void Engine::tick_loop() {
  while (!shared_->stopping) {
    shared_->alarm.begin();
    const Nanos now = monotonic_ns();
    Nanos next = tick_all(now);
    const bool active = now - shared_->active_at.load(std::memory_order_relaxed) < kActiveTime;
    next = std::min(next, now + (active ? kActiveTick : kSweepEvery));
    if (shared_->stopping) return;
    shared_->alarm.wait_until(next);
  }
}

Nanos Engine::tick_all(Nanos now) {
  Nanos next = kNever;
  for (const auto& layer : all_layers()) next = std::min(next, layer->tick(now));
  if (now - offers_ticked_ >= kOfferTick) {
    offers_ticked_ = now;
    for (const auto& offer : all_offers()) {
      if (offer->multicasts()) offer->tick(now);
    }
  }
  if (now - swept_ >= kSweepEvery) sweep();
  return next;
}

void Engine::sweep() {
  swept_ = monotonic_ns();
  shared_->connections.sweep();
  const std::unique_lock lock(mutex_);
  std::erase_if(layers_, [](const auto& entry) { return entry.second.expired(); });
}

}  // namespace snow::exchange
