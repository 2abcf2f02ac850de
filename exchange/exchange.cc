#include "exchange/exchange.h"

#include <nlohmann/json.hpp>

#include "exchange/engine.h"

namespace snow::exchange {

Exchange::Exchange(peer::Pool& pool, Options options)
    : engine_(std::make_unique<Engine>(pool, std::move(options))) {}
Exchange::~Exchange() = default;

void Exchange::serve(peer::Server& server) { engine_->serve(server); }
Descriptor Exchange::offer(std::shared_ptr<Content> content, Offer offer) {
  return engine_->offer(std::move(content), std::move(offer));
}
Result<Descriptor> Exchange::describe(const ImageId& id) const { return engine_->describe(id); }
void Exchange::withdraw(const ImageId& id) { engine_->withdraw(id); }
Result<std::shared_ptr<RemoteLayer>> Exchange::open(const Descriptor& descriptor,
                                                    const std::string& path) {
  return engine_->open(descriptor, path);
}
Result<std::shared_ptr<RemoteLayer>> Exchange::reopen(const std::string& path) {
  return engine_->reopen(path);
}
uint64_t Exchange::evict(uint64_t bytes) { return engine_->evict(bytes); }
void Exchange::host_down(const std::string& host) { engine_->host_down(host); }
void Exchange::host_up(const std::string& host) { engine_->host_up(host); }
void Exchange::forget_host(const std::string& host) { engine_->forget_host(host); }
void Exchange::stop() { engine_->stop(); }
nlohmann::json Exchange::statistics() const { return engine_->statistics(); }

}  // namespace snow::exchange
