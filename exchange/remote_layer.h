// A layer whose bytes come from other hosts: what a clone on another host has below it.
//
// What has come is kept in a sparse cache file; beside it lie PATH.map (which pages are there) and
// PATH.json (the descriptor), so that the next daemon goes on where this one ended. Everything that
// comes is verified before it is kept, shown or passed on.
//
// Block, never lie: a read of a page that no host can give waits until one can. It never shows
// zeros or an error for data that exists.
//
// Thread model: every function from any thread. read() does the round trip to the other host on the
// calling thread. Callbacks run on the exchange's threads, or on one that reads; no lock of the
// layer is held in them, and they may call read() but not the destructor of the last reference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "exchange/descriptor.h"
#include "image/layer.h"

namespace snow::exchange {

class LayerState;

class RemoteLayer : public Layer {
 public:
  explicit RemoteLayer(std::shared_ptr<LayerState> state);  // Exchange::open makes them
  RemoteLayer(const RemoteLayer&) = delete;
  // Nothing more is fetched. Removes cache file, map and descriptor unless keep() was called. No
  // read() may be under way.
  ~RemoteLayer() override;

  // Blocks until all of it is there. Errors: Code::unavailable after the exchange was stopped (the
  // bytes are not lost; who shows the layer must not tell the guest), Code::host_failed where the
  // cache file cannot be read.
  Result<void> read(uint64_t offset, std::span<std::byte> into) override;
  [[nodiscard]] std::string path() const override;  // the cache file
  [[nodiscard]] uint64_t size_bytes() const override;
  void keep() override;

  // Is given pages that nobody asked for by read() (multicast, hot set, fill) once they are
  // verified: offset and bytes within the layer's size. Pages of zeros are not handed out. A slow
  // one slows the fill down, no read.
  using OnPages = std::function<void(uint64_t offset, std::span<const std::byte> bytes)>;
  void on_pages(OnPages callback);
  // Called once, when nothing is missing any more; at once if that is so already.
  void on_complete(std::function<void()> callback);

  // Fetches all that is missing, behind what is demanded; `bytes_per_second` 0: no limit beside
  // the exchange's own. Returns at once; a second call changes the limit. pause_fill() ends it.
  void fill(uint64_t bytes_per_second = 0);
  void pause_fill();
  // fill(), and waits for its end: afterwards the origin is not needed. Code::timed_out (the fill
  // goes on), Code::unavailable as read(), Code::host_failed where the cache file cannot take it
  // (disk full; what is missing goes on being fetched when it is read). `timeout_ms` < 0: no limit.
  Result<void> detach(int timeout_ms);
  // Nothing is missing: reads use the cache file only.
  [[nodiscard]] bool complete() const;

  // Whether any read waits longer than a second, and for which host.
  [[nodiscard]] bool waiting() const;
  [[nodiscard]] std::string waiting_for() const;  // host id; empty: nothing waits

  [[nodiscard]] const Descriptor& descriptor() const;
  // docs/exchange-protocol.md lists the fields.
  [[nodiscard]] nlohmann::json statistics() const;

 private:
  const std::shared_ptr<LayerState> state_;
};

}  // namespace snow::exchange
