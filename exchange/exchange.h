// Pages of images between hosts: one Exchange per daemon. It gives out the bytes of images that
// this host froze (offer), fetches those of others (open), and passes on what it has fetched to
// hosts that the origin sent here. docs/exchange-protocol.md has the wire format.
//
// Thread model: every function from any thread. A host that asks is served by the thread that the
// peer::Server has for its connection; a demand read runs on the thread that reads; fill, hot set
// and repairs have threads of the exchange's own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "exchange/descriptor.h"
#include "exchange/remote_layer.h"
#include "image/content.h"
#include "image/extent_map.h"

namespace snow::peer {
class Pool;
class Server;
}  // namespace snow::peer

namespace snow::exchange {

struct MulticastSettings {
  bool enabled = false;
  std::string interface_address;          // IPv4 of the interface that carries the groups
  std::string group_base = "239.83.0.0";  // an image's group: base + 16 bits of its id
  uint16_t port_base = 7400;              // its port: base + id modulo `ports`
  uint16_t ports = 64;
  uint64_t bytes_per_second = 50'000'000;  // where the rate begins; it adapts
  uint64_t most_bytes_per_second = 125'000'000;
  int ttl = 1;
  uint32_t hosts_least = 2;  // that fetch an image: with fewer it is not sent so
  // For tests: may drop, repeat, reorder and change what was received.
  std::function<void(std::vector<std::vector<std::byte>>& packets)> meddle;
};

struct Options {
  std::string host;          // this host's id
  std::string key_file;      // PEM, the private key of its certificate; empty: no bursts are sent
  int fill_connections = 4;  // for each image that is filled
  uint64_t fill_bytes_per_second = 0;  // the most for each image; 0: no limit
  int request_timeout_ms = 2000;       // a host that has not answered by then is asked elsewhere
  bool relay = true;                   // offered images: hosts are sent to hosts that have the page
  MulticastSettings multicast;
};

// What offer() may be told beside the bytes.
struct Offer {
  std::optional<ImageId> id;  // of an image that was offered before the daemon's restart
  // The ranges that may hold data; the rest reads as zeros and is never sent. Called once, on a
  // thread of the exchange. Empty function: everything may be data.
  std::function<std::vector<Range>()> data_ranges;
  bool multicast = true;  // where the options allow it
};

class Engine;

class Exchange {
 public:
  // `pool` outlives the exchange. Multicast that cannot be had is logged and off.
  Exchange(peer::Pool& pool, Options options);
  Exchange(const Exchange&) = delete;
  ~Exchange();  // stop()

  // Adds the service "pages". The server is stopped before the exchange is destroyed.
  void serve(peer::Server& server);

  // This host is the origin of `content` from now on. The size is at most kMaxImageBytes.
  Descriptor offer(std::shared_ptr<Content> content, Offer offer = {});
  // The descriptor of an offered image as of now, with the working set seen so far;
  // Code::not_found.
  [[nodiscard]] Result<Descriptor> describe(const ImageId& id) const;
  // Hosts that still ask get UNKNOWN. Answers under way are finished first.
  void withdraw(const ImageId& id);

  // New, or again after a restart: pages that an earlier daemon has kept at `path` are not fetched
  // again. One layer for each path. Does not wait for the origin. Errors: Code::exists (open
  // already, or another image's cache lies there), Code::host_failed (the file cannot be made).
  Result<std::shared_ptr<RemoteLayer>> open(const Descriptor& descriptor, const std::string& path);
  // The same with the descriptor that lies beside the cache file; Code::not_found.
  Result<std::shared_ptr<RemoteLayer>> reopen(const std::string& path);

  // Drops about `bytes` of what layers have cached, least needed first, and returns how many it
  // could. Only pages that their origin, which is asked, still has; none of a layer that is being
  // filled. What is dropped comes again when it is read.
  uint64_t evict(uint64_t bytes);

  // What is known of other hosts, all optional: down, and asks of it go elsewhere at once; up, and
  // what waited for it goes on at once; gone for good (removed from the cluster).
  void host_down(const std::string& host);
  void host_up(const std::string& host);
  void forget_host(const std::string& host);

  // Reads that wait return Code::unavailable, threads end. Idempotent.
  void stop();

  // {"offers": [...], "layers": [...], "multicast": {...}}; docs/exchange-protocol.md lists the
  // fields.
  [[nodiscard]] nlohmann::json statistics() const;

 private:
  const std::unique_ptr<Engine> engine_;
};

}  // namespace snow::exchange
