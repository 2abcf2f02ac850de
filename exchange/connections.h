// Connections to other hosts that the exchange keeps in its hands between two requests, so that a
// demand need not ask the kernel first whether one is still alive (peer::Pool does). One that turns
// out to be dead is replaced by a new one and the request sent again. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "exchange/core/types.h"
#include "peer/pool.h"

namespace snow::exchange {

// Two services, so that bulk has connections, and at the other end threads, of its own.
inline constexpr std::string_view kDemandService = "pages";
inline constexpr std::string_view kBulkService = "pages.bulk";

class Connections {
 public:
  explicit Connections(peer::Pool& pool) : pool_(pool) {}

  // One that was used before, if there is any. Never blocks.
  std::optional<peer::Lease> idle(HostNumber host, bool bulk);
  // A new one.
  Result<peer::Lease> fresh(const std::string& host, bool bulk, int timeout_ms);
  // For the next. Not amid an answer: drop() such a one instead.
  void give_back(HostNumber host, bool bulk, peer::Lease lease);
  // Lets go of those that were not used since the last call.
  void sweep();
  void clear();

 private:
  struct Idle {
    std::vector<peer::Lease> leases;
    size_t unused = 0;  // the fewest that lay here since the last sweep
  };

  peer::Pool& pool_;
  std::mutex mutex_;
  std::map<std::pair<HostNumber, bool>, Idle> idle_;
};

}  // namespace snow::exchange
