// What all parts of an Exchange share: options, connections, host numbers, threads, the alarm that
// wakes the ticking thread. Outlives every layer and offer. Thread-safe.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "exchange/connections.h"
#include "exchange/core/types.h"
#include "exchange/exchange.h"
#include "exchange/host_table.h"
#include "exchange/thread_pool.h"

namespace snow::exchange {

// The moment at which a ticking thread next looks around. Its pass: begin(), look at everything,
// wait_until(what it found).
class Alarm {
 public:
  // It looks at `when` or earlier. Costs an atomic load unless that is earlier than it would have.
  void by(Nanos when) {
    when = std::max<Nanos>(when, 0);  // the core's "at once" is the least number there is
    if (when >= at_.load(std::memory_order_acquire)) return;
    const std::lock_guard lock(mutex_);
    at_.store(std::min(when, at_.load(std::memory_order_relaxed)), std::memory_order_release);
    wake_.notify_one();
  }
  void begin() { at_.store(kNever, std::memory_order_release); }
  void wait_until(Nanos when);

 private:
  std::atomic<Nanos> at_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
};

struct Shared {
  Shared(peer::Pool& pool, Options the_options)
      : options(std::move(the_options)), connections(pool), self(hosts.number(options.host)) {}

  const Options options;
  Connections connections;
  HostTable hosts;
  const HostNumber self;
  ThreadPool demand{64, 0};  // hedges, what readers cannot do themselves, small requests
  ThreadPool bulk{32, 5};
  Alarm alarm;        // of the engine's ticking thread
  Alarm burst_alarm;  // of the one that multicasts
  std::atomic<bool> stopping = false;
  std::atomic<uint64_t> queued_bytes = 0;  // being sent at the moment, to anybody
  std::atomic<Nanos> active_at = 0;        // when a read last had to ask
};

}  // namespace snow::exchange
