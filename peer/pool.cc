#include "peer/pool.h"

#include <algorithm>

#include "base/file.h"

namespace snow::peer {

Lease& Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    give_back();
    pool_ = std::exchange(other.pool_, nullptr);
    connection_ = std::move(other.connection_);
    reused_ = other.reused_;
  }
  return *this;
}

void Lease::drop() {
  if (connection_ != nullptr) connection_->interrupt();
  give_back();
}

void Lease::give_back() {
  if (connection_ != nullptr) pool_->give_back(std::move(connection_));
}

std::vector<Pool::Idle>& Pool::Host::idle(std::string_view service) {
  for (auto& [name, idle] : services) {
    if (name == service) return idle;
  }
  return services.emplace_back(std::string(service), std::vector<Idle>()).second;
}

Pool::Pool(std::shared_ptr<const Credentials> us, Resolver resolver, Options options)
    : us_(std::move(us)), resolver_(std::move(resolver)), options_(options) {}

Result<Lease> Pool::take(const std::string& host, std::string_view service, int timeout_ms) {
  while (auto connection = take_idle(host, service)) {
    // What closed while it lay here shows now; it is let go outside the mutex.
    if (connection->idle_and_alive()) return Lease(this, std::move(connection), true);
    connection->interrupt();
    give_back(std::move(connection));
  }
  return take_new(host, service, timeout_ms);
}

Result<Lease> Pool::take_new(const std::string& host, std::string_view service, int timeout_ms) {
  const Deadline deadline(timeout_ms);
  SNOW_ASSIGN(const Address address, resolver_(host));
  SNOW_ASSIGN(auto connection,
              Connection::connect(*us_, address, host, service, deadline.left_ms()));
  const std::lock_guard lock(mutex_);
  hosts_[host].used.push_back(connection.get());
  return Lease(this, std::move(connection), false);
}

std::unique_ptr<Connection> Pool::take_idle(const std::string& host, std::string_view service) {
  Doomed doomed;  // closed outside the mutex
  const int64_t oldest_ns = monotonic_ns() - int64_t{options_.idle_ms} * 1'000'000;
  const std::lock_guard lock(mutex_);
  const auto found = hosts_.find(host);
  if (found == hosts_.end()) return nullptr;
  auto& idle = found->second.idle(service);
  if (!idle.empty() && idle.back().since_ns < oldest_ns) {  // and so are the others
    for (auto& entry : idle) doomed.push_back(std::move(entry.connection));
    idle.clear();
  }
  if (idle.empty()) return nullptr;
  // The one used last: its caches are warm, and those not needed grow old.
  auto connection = std::move(idle.back().connection);
  idle.pop_back();
  found->second.used.push_back(connection.get());
  return connection;
}

void Pool::give_back(std::unique_ptr<Connection> connection) {
  Doomed doomed;  // closed outside the mutex
  const bool useful = !connection->broken() && !connection->awaiting();
  const int64_t now_ns = monotonic_ns();
  const std::lock_guard lock(mutex_);
  Host& host = hosts_[connection->host()];
  const auto used = std::find(host.used.begin(), host.used.end(), connection.get());
  if (used != host.used.end()) {
    *used = host.used.back();
    host.used.pop_back();
  }
  auto& idle = host.idle(connection->service());
  if (useful && idle.size() < options_.idle_per_service) {
    idle.push_back({std::move(connection), now_ns});
  } else {
    doomed.push_back(std::move(connection));
  }
  if (now_ns - swept_ns_ > int64_t{options_.idle_ms} * 1'000'000 / 2) sweep(now_ns, doomed);
}

void Pool::sweep(int64_t now_ns, Doomed& doomed) {
  swept_ns_ = now_ns;
  const int64_t oldest_ns = now_ns - int64_t{options_.idle_ms} * 1'000'000;
  for (auto& [name, host] : hosts_) {
    for (auto& [service, idle] : host.services) {
      const auto young = std::find_if(
          idle.begin(), idle.end(), [&](const Idle& entry) { return entry.since_ns >= oldest_ns; });
      for (auto entry = idle.begin(); entry != young; ++entry) {
        doomed.push_back(std::move(entry->connection));
      }
      idle.erase(idle.begin(), young);
    }
  }
}

void Pool::forget(const std::string& host) {
  Doomed doomed;
  const std::lock_guard lock(mutex_);
  const auto found = hosts_.find(host);
  if (found == hosts_.end()) return;
  for (auto& [service, idle] : found->second.services) {
    for (auto& entry : idle) doomed.push_back(std::move(entry.connection));
    idle.clear();
  }
  for (Connection* used : found->second.used) used->interrupt();
}

size_t Pool::idle() const {
  const std::lock_guard lock(mutex_);
  size_t count = 0;
  for (const auto& [name, host] : hosts_) {
    for (const auto& [service, idle] : host.services) count += idle.size();
  }
  return count;
}

}  // namespace snow::peer
