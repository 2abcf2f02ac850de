// Images of other hosts that machines here stand on: each is one layer, however many VMs show it.
//
// The image's origin knows this host as a holder from before the layer is opened (the call that
// brings the clones says so) until it is told otherwise: when nothing is missing here any more, or
// when the last user has let go. That message goes through the outbox, so that it arrives however
// often this daemon dies. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "exchange/exchange.h"
#include "image/image.h"
#include "image/layer.h"

namespace snow {

class RemoteImages {
 public:
  struct Options {
    std::string folder;          // of the cache files
    uint64_t fill_rate = 0;      // bytes per second of a fill in the background; 0: no limit
    unsigned fill_after_ms = 0;  // an image is filled when it has been open for so long
  };
  // `release`: the origin need not keep the image for us any more; may be called more than once for
  // one image. `exchange` outlives this object, and this object the layers.
  using Release = std::function<void(const std::string& origin, const std::string& image)>;
  RemoteImages(exchange::Exchange& exchange, Options options, Release release);

  Result<std::shared_ptr<Layer>> open(const exchange::Descriptor& descriptor);
  // After a restart, by the cache file. What is not opened again is released by release_others().
  Result<std::shared_ptr<Layer>> reopen(const std::string& path);
  void release_others();
  // Not open, and never will be: the holder that was announced is none.
  void refuse(const exchange::Descriptor& descriptor);

  // What is shown by an open layer; null: none of ours.
  [[nodiscard]] std::shared_ptr<exchange::RemoteLayer> find(const std::string& path) const;
  // The layers of the image whose bytes come from other hosts.
  [[nodiscard]] std::vector<std::shared_ptr<exchange::RemoteLayer>> of(const Image& image) const;
  void start_due_fills();  // called now and then
  // The daemon ends and the VMs go on: what is let go from now on is not released.
  void leave();

 private:
  struct Entry {
    std::weak_ptr<Layer> layer;
    std::weak_ptr<exchange::RemoteLayer> remote;
    int64_t fill_at_ns = 0;  // monotonic; 0: was begun
  };
  // What layers refer to: a read that was left to the next daemon may let go of its layer last,
  // after this object.
  struct State {
    std::mutex mutex;
    std::map<std::string, Entry> open;  // by cache file
    Release release;
    bool leaving = false;
    void let_go(const std::string& path, const std::string& origin, const std::string& image);
  };
  std::shared_ptr<Layer> track(std::shared_ptr<exchange::RemoteLayer> remote);

  exchange::Exchange& exchange_;
  const Options options_;
  const std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace snow
