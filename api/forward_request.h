// One request on its way at another host.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "api/forward_message.h"
#include "api/routes.h"
#include "base/result.h"
#include "peer/pool.h"
#include "vm/host.h"

namespace snow::forward {

// Owns the connection. One thread at a time. Destroyed before the reply was read whole: the
// connection is closed, and the other side gives up what it can. Errors name the host.
class Passed {
 public:
  // `timeout_ms`: for connecting and sending.
  static Result<std::unique_ptr<Passed>> send(std::shared_ptr<Neighbours> neighbours,
                                              const std::string& host, const Call& call,
                                              bool upload, int timeout_ms);
  ~Passed();
  Passed(const Passed&) = delete;

  // Waits for the reply. Without a timeout (negative) as long as the host lives and `stopping` is
  // false; then Code::unavailable.
  Result<Head> reply(int timeout_ms, const std::atomic<bool>& stopping);
  // Of a stream; empty: that was all.
  Result<std::string> piece(int timeout_ms, const std::atomic<bool>& stopping);

  // Of an upload.
  [[nodiscard]] bool answered();  // a reply has come although not all was sent
  Result<void> write(std::string_view bytes, const std::atomic<bool>& stopping);
  Result<void> end();

  Result<void> is_live() const;  // Code::unavailable: the host is gone
  [[nodiscard]] peer::Connection& connection() { return *lease_; }
  [[nodiscard]] const std::string& host_name() const { return host_name_; }

 private:
  Passed(std::shared_ptr<Neighbours> neighbours, std::string host, peer::Lease lease);
  Result<uint8_t> next(int timeout_ms, const std::atomic<bool>& stopping,
                       std::vector<std::byte>& payload);
  tl::unexpected<Error> lost(const Error& why) const;

  const std::shared_ptr<Neighbours> neighbours_;
  const std::string host_, host_name_;
  peer::Lease lease_;
  bool whole_ = false;  // nothing more comes: the connection is fit for the next request
};

// The reply for the client of a request that was passed on. It holds what it needs.
Result<Reply> take_reply(std::shared_ptr<Passed> passed, const std::atomic<bool>& stopping);

}  // namespace snow::forward
