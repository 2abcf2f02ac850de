// What each request of api/openapi.yaml does, on a Host, without HTTP: the server (api/server.h)
// turns connections into Calls and Replies into bytes. In a cluster also for VMs and tickets of
// other hosts (api/forward.h). Thread-safe: handlers share nothing but the
// Host and the stop flag.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/caller.h"
#include "base/result.h"
#include "vm/host.h"

namespace snow {

struct Call {
  std::string method;
  std::string path;                          // decoded, with /v1
  std::map<std::string, std::string> query;  // decoded
  std::string body;
  Caller caller;
  bool upgrade = false;    // `Upgrade: snow-stream` was sent
  bool forwarded = false;  // by another host: it is answered for this host only (api/forward.h)
};

struct Reply {
  int status = 200;
  const char* type = "application/json";
  std::string body;
  std::vector<std::string> missing;  // hosts that a list is without: the header Snow-Missing
  // Set: the body is what this returns, piece by piece; an empty piece ends it, an error cuts it
  // short (the client sees an unfinished body).
  std::function<Result<std::string>()> more;
  // Set: 101, then this has the socket (blocking) until it returns. `early`: bytes that the client
  // sent behind its request.
  std::function<void(int fd, std::string early)> upgraded;
};

Reply error_reply(const Error& error);

// A request body that is taken as it comes, however long it is. Destroyed before finish(): given
// up.
class Upload {
 public:
  virtual ~Upload() = default;
  virtual Result<void> write(std::string_view bytes) = 0;
  virtual Reply finish() = 0;
};

class Routes {
 public:
  // `host` must outlive the object. When `stopping` becomes true, event streams end.
  Routes(Host& host, const std::atomic<bool>& stopping);

  // Never throws. The body must be whole.
  Reply handle(const Call& call) const;

  // For requests whose body is streamed; nullptr: it is not one of those.
  [[nodiscard]] Result<std::unique_ptr<Upload>> upload(const Call& call) const;

 private:
  Host& host_;
  const std::atomic<bool>& stopping_;
};

}  // namespace snow
