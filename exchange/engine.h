// The Exchange's inside: which images are offered and fetched here, the service that answers other
// hosts, the thread that ticks. Thread-safe.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include "exchange/exchange.h"
#include "exchange/layer_state.h"
#include "exchange/multicast_receiver.h"
#include "exchange/multicast_sender.h"
#include "exchange/offer_state.h"
#include "exchange/shared.h"
#include "peer/server.h"

namespace snow::exchange {

class Engine {
 public:
  Engine(peer::Pool& pool, Options options);
  ~Engine();

  void serve(peer::Server& server);
  Descriptor offer(std::shared_ptr<Content> content, Offer offer);
  Result<Descriptor> describe(const ImageId& id) const;
  void withdraw(const ImageId& id);
  Result<std::shared_ptr<RemoteLayer>> open(const Descriptor& descriptor, const std::string& path);
  Result<std::shared_ptr<RemoteLayer>> reopen(const std::string& path);
  uint64_t evict(uint64_t bytes);
  void host_down(const std::string& host);
  void host_up(const std::string& host);
  void forget_host(const std::string& host);
  void stop();
  [[nodiscard]] nlohmann::json statistics() const;

 private:
  void serve_connection(peer::Connection& connection);
  Result<void> answer(uint8_t type, wire::Bytes payload, Responder& responder);
  Result<void> answer_fetch(wire::Bytes payload, Responder& responder);
  [[nodiscard]] std::shared_ptr<OfferState> find_offer(const ImageId& id) const;
  [[nodiscard]] std::shared_ptr<LayerState> find_layer(const ImageId& id) const;
  [[nodiscard]] std::vector<std::shared_ptr<OfferState>> all_offers() const;
  [[nodiscard]] std::vector<std::shared_ptr<LayerState>> all_layers() const;
  void start_multicast();
  void tick_loop();
  Nanos tick_all(Nanos now);
  void sweep();

  const std::shared_ptr<Shared> shared_;
  mutable std::shared_mutex mutex_;  // of these three
  std::map<ImageId, std::shared_ptr<OfferState>> offers_;
  std::map<std::string, std::weak_ptr<LayerState>> layers_;  // by path
  std::set<ImageId> opened_;  // that were asked for in this daemon's life
  Nanos swept_ = 0;           // the ticking thread's
  Nanos offers_ticked_ = 0;
  std::unique_ptr<MulticastSender> sender_;  // both: none where multicast is off
  std::unique_ptr<MulticastReceiver> receiver_;
  std::thread ticker_;
};

}  // namespace snow::exchange
