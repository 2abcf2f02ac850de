// Listens to the groups of the images that are fetched here: one thread, a socket for each. What
// arrives verified goes to the layer. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "exchange/layer_state.h"
#include "exchange/reassembly.h"
#include "exchange/shared.h"

namespace snow::exchange {

class MulticastReceiver {
 public:
  explicit MulticastReceiver(std::shared_ptr<Shared> shared);
  ~MulticastReceiver() { stop(); }
  // Ends when the layer does not want it any more, or is gone. Code::host_failed, Code::invalid
  // (the descriptor's key).
  Result<void> join(const std::shared_ptr<LayerState>& layer);
  void stop();
  [[nodiscard]] size_t groups() const;

 private:
  struct Member {
    Member(Fd socket, std::weak_ptr<LayerState> state, Reassembly bursts)
        : fd(std::move(socket)), layer(std::move(state)), reassembly(std::move(bursts)) {}
    const Fd fd;
    const std::weak_ptr<LayerState> layer;
    Reassembly reassembly;
    bool left = false;  // pages that wait for the rest of their burst
  };

  void run();
  void receive(Member& member);
  void take(Member& member, LayerState& layer, bool all);

  const std::shared_ptr<Shared> shared_;
  const Fd wake_;  // an eventfd: members_ changed, or the end
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Member>> members_;
  std::vector<std::vector<std::byte>> packets_;  // the thread's own; room for a batch
  std::thread thread_;
};

}  // namespace snow::exchange
