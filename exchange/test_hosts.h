// For tests: hosts of one cluster in one process, each with a server, a pool and an exchange, over
// loopback; and content whose every 8 bytes tell where they are.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "exchange/exchange.h"
#include "exchange/wire.h"
#include "image/content.h"
#include "peer/pool.h"
#include "peer/server.h"
#include "peer/test_cluster.h"

namespace snow::exchange {

// Never zeros, unless the page is in a row of zero pages that `zero_every` makes.
class Pattern : public Content {
 public:
  explicit Pattern(uint64_t size, uint64_t seed = 1, uint32_t zero_every = 0)
      : size_(size), seed_(seed), zero_every_(zero_every) {}
  [[nodiscard]] uint64_t size() const override { return size_; }
  [[nodiscard]] bool is_zero(uint64_t page) const {
    return zero_every_ != 0 && page % zero_every_ == 0;
  }
  [[nodiscard]] std::byte at(uint64_t offset) const {
    if (is_zero(offset / kPageBytes)) return {};
    const uint64_t word = (offset / 8 + 1) * 0x9e3779b97f4a7c15 * (2 * seed_ + 1);
    return static_cast<std::byte>(word >> (offset % 8 * 8));
  }
  Result<void> read(uint64_t offset, std::span<std::byte> into) override {
    if (failing) return fail(Code::host_failed, "told to fail");
    reads += 1;
    for (size_t i = 0; i < into.size(); ++i) into[i] = at(offset + i);
    return {};
  }
  [[nodiscard]] bool matches(uint64_t offset, std::span<const std::byte> bytes) const {
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] != at(offset + i)) return false;
    }
    return true;
  }

  std::atomic<bool> failing = false;
  std::atomic<uint64_t> reads = 0;

 private:
  const uint64_t size_, seed_;
  const uint32_t zero_every_;
};

// Where hosts listen. A host that is not there cannot be reached.
class Directory {
 public:
  void set(const std::string& host, peer::Address address) {
    const std::lock_guard lock(mutex_);
    addresses_[host] = std::move(address);
  }
  Result<peer::Address> find(const std::string& host) {
    const std::lock_guard lock(mutex_);
    const auto at = addresses_.find(host);
    if (at == addresses_.end()) return fail(Code::unavailable, "host {}: not there", host);
    return at->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, peer::Address> addresses_;
};

class Cluster;

// One daemon. Its server can be stopped and started again on the same port.
class Host {
 public:
  Host(Cluster& cluster, const std::string& id, Options options = {}, bool with_exchange = true);
  ~Host() {
    if (exchange) exchange->stop();
    down();
  }
  void up() {
    server = std::make_unique<peer::Server>(credentials);
    if (exchange) exchange->serve(*server);
    if (add_services) add_services(*server);
    const auto started = server->start(address);
    ASSERT_TRUE(started) << started.error().message;
    address = server->address();
    publish();
  }
  void down() {
    if (server) server->stop();
    server.reset();
  }
  void publish();

  const std::string id;
  std::shared_ptr<const peer::Credentials> credentials;
  std::unique_ptr<peer::Pool> pool;
  std::unique_ptr<Exchange> exchange;
  std::unique_ptr<peer::Server> server;
  std::function<void(peer::Server&)> add_services;
  peer::Address address{"127.0.0.1", 0};

 private:
  Cluster& cluster_;
};

class Cluster {
 public:
  peer::TestCluster certificates;
  peer::TestFolder folder;
  Directory directory;
  std::shared_ptr<const peer::Credentials> credentials(const std::string& id) {
    return certificates.credentials(id);
  }
  // PEM of the host's private key.
  std::string key_file(const std::string& id) { return certificates.add_host(id) + "/host.key"; }
};

inline Host::Host(Cluster& cluster, const std::string& the_id, Options options, bool with_exchange)
    : id(the_id), credentials(cluster.credentials(the_id)), cluster_(cluster) {
  pool = std::make_unique<peer::Pool>(
      credentials, [&cluster](const std::string& host) { return cluster.directory.find(host); });
  options.host = id;
  if (with_exchange) exchange = std::make_unique<Exchange>(*pool, options);
}
inline void Host::publish() { cluster_.directory.set(id, address); }

// True as soon as `condition` is, within ten seconds.
inline bool soon(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

inline bool reads_right(RemoteLayer& layer, const Pattern& pattern, uint64_t offset, size_t size) {
  std::vector<std::byte> bytes(size, std::byte{0xee});
  const auto read = layer.read(offset, bytes);
  EXPECT_TRUE(read) << read.error().message;
  return read && pattern.matches(offset, bytes);
}

inline bool all_right(RemoteLayer& layer, const Pattern& pattern) {
  for (uint64_t at = 0; at < pattern.size(); at += 1 << 18) {
    if (!reads_right(layer, pattern, at, std::min<uint64_t>(1 << 18, pattern.size() - at))) {
      return false;
    }
  }
  return true;
}

}  // namespace snow::exchange
