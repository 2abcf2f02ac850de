// Connections to other hosts, kept for the next who needs one. Thread-safe. One mutex, held for a
// look-up, never while the network is waited for.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "peer/connection.h"
#include "peer/credentials.h"

namespace snow::peer {

class Pool;

// A connection that is the holder's until the lease ends. Then it goes back to the pool, unless it
// is broken, an answer is owed on it (the last thing done was a send), or it was dropped. Who stops
// amid an answer of several frames must drop it.
class Lease {
 public:
  Lease() = default;
  Lease(Lease&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)),
        connection_(std::move(other.connection_)),
        reused_(other.reused_) {}
  Lease& operator=(Lease&& other) noexcept;
  ~Lease() { give_back(); }

  Connection* operator->() const { return connection_.get(); }
  Connection& operator*() const { return *connection_; }
  [[nodiscard]] bool reused() const { return reused_; }  // it lay in the pool before
  void drop();                                           // closes it now

 private:
  friend class Pool;
  Lease(Pool* pool, std::unique_ptr<Connection> connection, bool reused)
      : pool_(pool), connection_(std::move(connection)), reused_(reused) {}
  void give_back();

  Pool* pool_ = nullptr;
  std::unique_ptr<Connection> connection_;
  bool reused_ = false;
};

// Outlives its leases.
class Pool {
 public:
  using Resolver = std::function<Result<Address>(const std::string& host)>;
  struct Options {
    size_t idle_per_service = 64;  // per host; more are closed when given back
    int idle_ms = 60'000;          // an idle connection is closed after that
  };

  Pool(std::shared_ptr<const Credentials> us, Resolver resolver)
      : Pool(std::move(us), std::move(resolver), Options{}) {}
  Pool(std::shared_ptr<const Credentials> us, Resolver resolver, Options options);
  Pool(const Pool&) = delete;

  // An idle connection that is alive as far as the kernel knows (one system call, no allocation),
  // or a new one. The timeout is for finding the host, TLS and hello together.
  Result<Lease> take(const std::string& host, std::string_view service, int timeout_ms);
  // Always a new one.
  Result<Lease> take_new(const std::string& host, std::string_view service, int timeout_ms);

  // Closes the idle connections to this host and interrupts those in use: it was removed, or has a
  // new address.
  void forget(const std::string& host);

  [[nodiscard]] size_t idle() const;
  [[nodiscard]] const Credentials& us() const { return *us_; }

 private:
  friend class Lease;
  struct Idle {
    std::unique_ptr<Connection> connection;
    int64_t since_ns = 0;
  };
  struct Host {
    std::vector<std::pair<std::string, std::vector<Idle>>> services;
    std::vector<Connection*> used;
    std::vector<Idle>& idle(std::string_view service);
  };
  using Doomed = std::vector<std::unique_ptr<Connection>>;

  std::unique_ptr<Connection> take_idle(const std::string& host, std::string_view service);
  void give_back(std::unique_ptr<Connection> connection);
  void sweep(int64_t now_ns, Doomed& doomed);

  const std::shared_ptr<const Credentials> us_;
  const Resolver resolver_;
  const Options options_;
  mutable std::mutex mutex_;  // of all below
  std::map<std::string, Host, std::less<>> hosts_;
  int64_t swept_ns_ = 0;
};

}  // namespace snow::peer
