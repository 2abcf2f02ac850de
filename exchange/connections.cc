#include "exchange/connections.h"

#include <algorithm>

#include "exchange/wire.h"

namespace snow::exchange {
namespace {

constexpr size_t kMostIdle = 32;

}  // namespace

std::optional<peer::Lease> Connections::idle(HostNumber host, bool bulk) {
  const std::lock_guard lock(mutex_);
  const auto at = idle_.find({host, bulk});
  if (at == idle_.end()) return std::nullopt;
  Idle& idle = at->second;
  while (!idle.leases.empty()) {
    peer::Lease lease = std::move(idle.leases.back());
    idle.leases.pop_back();
    idle.unused = std::min(idle.unused, idle.leases.size());
    if (!lease->broken()) return lease;
  }
  return std::nullopt;
}

Result<peer::Lease> Connections::fresh(const std::string& host, bool bulk, int timeout_ms) {
  SNOW_ASSIGN(peer::Lease lease,
              pool_.take_new(host, bulk ? kBulkService : kDemandService, timeout_ms));
  lease->set_limit(wire::kMaxPayloadBytes);
  return lease;
}

void Connections::give_back(HostNumber host, bool bulk, peer::Lease lease) {
  if (lease->broken()) return;
  const std::lock_guard lock(mutex_);
  Idle& idle = idle_[{host, bulk}];
  if (idle.leases.size() < kMostIdle) idle.leases.push_back(std::move(lease));
}

void Connections::sweep() {
  std::vector<peer::Lease> dropped;
  const std::lock_guard lock(mutex_);
  for (auto& [key, idle] : idle_) {
    for (size_t i = 0; i < idle.unused && !idle.leases.empty(); ++i) {
      dropped.push_back(std::move(idle.leases.front()));  // the oldest
      idle.leases.erase(idle.leases.begin());
    }
    idle.unused = idle.leases.size();
  }
  for (peer::Lease& lease : dropped) lease.drop();
}

void Connections::clear() {
  const std::lock_guard lock(mutex_);
  idle_.clear();
}

}  // namespace snow::exchange
