#include "exchange/remote_layer.h"

#include <nlohmann/json.hpp>

#include "exchange/layer_state.h"

namespace snow::exchange {

RemoteLayer::RemoteLayer(std::shared_ptr<LayerState> state) : state_(std::move(state)) {}
RemoteLayer::~RemoteLayer() { state_->close(); }

Result<void> RemoteLayer::read(uint64_t offset, std::span<std::byte> into) {
  return state_->read(offset, into);
}
std::string RemoteLayer::path() const { return state_->path(); }
uint64_t RemoteLayer::size_bytes() const { return state_->descriptor().size_bytes; }
void RemoteLayer::keep() { state_->keep(); }
void RemoteLayer::on_pages(OnPages callback) { state_->on_pages(std::move(callback)); }
void RemoteLayer::on_complete(std::function<void()> callback) {
  state_->on_complete(std::move(callback));
}
void RemoteLayer::fill(uint64_t bytes_per_second) { state_->fill(bytes_per_second); }
void RemoteLayer::pause_fill() { state_->pause_fill(); }
Result<void> RemoteLayer::detach(int timeout_ms) { return state_->detach(timeout_ms); }
bool RemoteLayer::complete() const { return state_->complete(); }
bool RemoteLayer::waiting() const { return !waiting_for().empty(); }
std::string RemoteLayer::waiting_for() const { return state_->waiting_for(kSecond); }
const Descriptor& RemoteLayer::descriptor() const { return state_->descriptor(); }
nlohmann::json RemoteLayer::statistics() const { return state_->statistics(); }

}  // namespace snow::exchange
