// Requests to snowd over its unix socket (libcurl). Errors are the API's own, or Code::unavailable
// when the daemon cannot be reached and Code::denied when the socket is not for this user. Each
// call is a connection of its own; thread-safe.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/result.h"

namespace snow::cli {

std::string escape(std::string_view text);  // for a path's segment or a query's value

class Client {
 public:
  explicit Client(std::string socket) : socket_(std::move(socket)) {}

  // `path` without /v1. Hosts that are missing in a list (Snow-Missing) are named on standard
  // error.
  [[nodiscard]] Result<nlohmann::json> get(const std::string& path) const;
  [[nodiscard]] Result<nlohmann::json> post(const std::string& path,
                                            const nlohmann::json& body) const;
  [[nodiscard]] Result<nlohmann::json> post(const std::string& path) const;
  [[nodiscard]] Result<void> remove(const std::string& path) const;

  // The body piece by piece; `take` returns an error to end it.
  [[nodiscard]] Result<void> download(
      const std::string& path, const std::function<Result<void>(std::string_view)>& take) const;
  // The body is what can be read of `fd`, named `name` in errors.
  [[nodiscard]] Result<void> upload(const std::string& path, int fd, const std::string& name) const;

  struct Stream {
    Fd fd;
    std::string early;  // bytes that came behind the answer's headers
  };
  // POST with an upgrade to frames (api/frame.h).
  [[nodiscard]] Result<Stream> upgrade(const std::string& path, const nlohmann::json& body) const;

 private:
  std::string socket_;
};

}  // namespace snow::cli
