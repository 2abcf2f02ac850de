// Settles frozen machines one after the other in the background: copies what is still in a stopped
// QEMU into a layer file and lets the process go (Frozen::settle). It lets forks under way go
// first: for up to kForkFirst it waits while any is active. Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "vm/frozen.h"

namespace snow {

class Settler {
 public:
  // `is_private`: whether nobody but the given machine shows a layer. `settled` is called after
  // each success, on the settler's thread.
  Settler(std::function<bool(const Frozen&, const Layer&)> is_private,
          std::function<void()> settled);
  // Finishes nothing: what is not settled is the next daemon's to settle.
  ~Settler();

  void add(std::shared_ptr<Frozen> frozen);

  // While one of these lives, a fork is under way.
  class ForkUnderWay {
   public:
    explicit ForkUnderWay(Settler& settler) : settler_(settler) { ++settler_.forks_; }
    ~ForkUnderWay() { --settler_.forks_; }
    ForkUnderWay(const ForkUnderWay&) = delete;
    ForkUnderWay& operator=(const ForkUnderWay&) = delete;

   private:
    Settler& settler_;
  };

 private:
  void loop();
  bool step_aside(int64_t& patience_ns);

  const std::function<bool(const Frozen&, const Layer&)> is_private_;
  const std::function<void()> settled_;
  std::atomic<int> forks_ = 0;
  std::atomic<bool> stopping_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Frozen>> queue_;
  std::thread thread_;
};

}  // namespace snow
