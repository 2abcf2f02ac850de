#include "vm/remote_images.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"

namespace snow {

RemoteImages::RemoteImages(exchange::Exchange& exchange, Options options, Release release)
    : exchange_(exchange), options_(std::move(options)) {
  state_->release = std::move(release);
}

// The layer as its users hold it: the last one who lets go tells the origin.
std::shared_ptr<Layer> RemoteImages::track(std::shared_ptr<exchange::RemoteLayer> remote) {
  const std::string path = remote->path();
  const std::string origin = remote->descriptor().origin;
  const std::string image = exchange::to_text(remote->descriptor().id);
  std::shared_ptr<Layer> layer(
      remote.get(), [state = state_, remote, path, origin, image](Layer*) mutable {
        {
          const std::lock_guard lock(state->mutex);  // nobody opens the file while it goes
          remote.reset();
        }
        state->let_go(path, origin, image);
      });
  state_->open[path] = {layer, remote,
                        monotonic_ns() + int64_t{options_.fill_after_ms} * 1'000'000};
  remote->on_complete([state = state_, origin, image] { state->release(origin, image); });
  return layer;
}

Result<std::shared_ptr<Layer>> RemoteImages::open(const exchange::Descriptor& descriptor) {
  const std::string path = options_.folder + "/" + exchange::to_text(descriptor.id);
  const std::lock_guard lock(state_->mutex);
  if (const auto it = state_->open.find(path); it != state_->open.end()) {
    if (auto layer = it->second.layer.lock()) return layer;
    if (auto remote = it->second.remote.lock()) return track(std::move(remote));
  }
  SNOW_ASSIGN(auto remote, exchange_.open(descriptor, path));
  return track(std::move(remote));
}

Result<std::shared_ptr<Layer>> RemoteImages::reopen(const std::string& path) {
  const std::lock_guard lock(state_->mutex);
  if (const auto it = state_->open.find(path); it != state_->open.end()) {
    if (auto layer = it->second.layer.lock()) return layer;
  }
  SNOW_ASSIGN(auto remote, exchange_.reopen(path));
  return track(std::move(remote));
}

void RemoteImages::State::let_go(const std::string& path, const std::string& origin,
                                 const std::string& image) {
  {
    const std::lock_guard lock(mutex);
    const auto it = open.find(path);
    // It may have been opened again meanwhile: then it is still needed.
    if (it != open.end() && !it->second.layer.expired()) return;
    open.erase(path);
    if (leaving) return;
  }
  release(origin, image);
}

void RemoteImages::leave() {
  const std::lock_guard lock(state_->mutex);
  state_->leaving = true;
}

void RemoteImages::refuse(const exchange::Descriptor& descriptor) {
  {
    const std::lock_guard lock(state_->mutex);
    const auto it = state_->open.find(options_.folder + "/" + exchange::to_text(descriptor.id));
    if (it != state_->open.end() && !it->second.layer.expired()) return;
  }
  state_->release(descriptor.origin, exchange::to_text(descriptor.id));
}

void RemoteImages::release_others() {
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(options_.folder, error)) {
    if (!entry.path().has_extension()) paths.push_back(entry.path());
  }
  for (const std::string& path : paths) {
    {
      const std::lock_guard lock(state_->mutex);
      if (state_->open.contains(path)) continue;
    }
    // Opened and let go: that removes its files and tells the origin.
    if (auto layer = reopen(path); !layer) {
      log_warn("{}: {}; removed", path, layer.error().message);
      for (const char* suffix : {"", ".map", ".json"}) remove_all(path + suffix);
    }
  }
}

std::shared_ptr<exchange::RemoteLayer> RemoteImages::find(const std::string& path) const {
  const std::lock_guard lock(state_->mutex);
  const auto it = state_->open.find(path);
  return it == state_->open.end() ? nullptr : it->second.remote.lock();
}

std::vector<std::shared_ptr<exchange::RemoteLayer>> RemoteImages::of(const Image& image) const {
  std::vector<std::shared_ptr<exchange::RemoteLayer>> layers;
  for (const auto& layer : image.layers()) {
    if (auto remote = find(layer->path())) layers.push_back(std::move(remote));
  }
  return layers;
}

void RemoteImages::start_due_fills() {
  std::vector<std::shared_ptr<exchange::RemoteLayer>> due;
  {
    const std::lock_guard lock(state_->mutex);
    for (auto& [path, entry] : state_->open) {
      if (entry.fill_at_ns == 0 || entry.fill_at_ns > monotonic_ns()) continue;
      entry.fill_at_ns = 0;
      if (auto remote = entry.remote.lock()) due.push_back(std::move(remote));
    }
  }
  for (const auto& remote : due) remote->fill(options_.fill_rate);
}

}  // namespace snow
