// The HTTP server of the API on a unix socket (libmicrohttpd, one thread per connection, one
// request per connection). Bodies and headers are bounded; a client that sends nothing is dropped
// after 30 s, but an accepted request may take as long as it needs.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "vm/host.h"

namespace snow {

class Server {
 public:
  struct Options {
    std::string socket_path;
    std::string group;  // may use the socket; empty or unknown: only the daemon's user
    unsigned connection_limit = 1024;
  };
  // Listens (mode 0660 with the group, 0600 without). `host` must outlive the object. Code::exists:
  // somebody serves that socket already.
  static Result<std::unique_ptr<Server>> start(Host& host, const Options& options);

  // stop(1000) if it has not been called.
  virtual ~Server() = default;

  // Takes no new requests, closes exec, console and event streams, and waits for the requests under
  // way. False: some still ran after `grace_ms`; the object must then not be destroyed before the
  // process ends (their threads use it).
  virtual bool stop(int grace_ms) = 0;
};

}  // namespace snow
