// A conversation of any length with another host: opened like a call, then both sides send frames
// as they like. Over service "stream"; each has a connection of its own, which ends with it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "peer/calls.h"
#include "peer/pool.h"
#include "peer/server.h"

namespace snow::peer {

// One side. One thread may send while another receives; `interrupt` is free to any thread.
// Errors as in Connection.
class Stream {
 public:
  Stream(Stream&&) = default;
  ~Stream();  // closes; what was sent and not read by the other side may be lost (see finish)

  // Types from kFirstFree on.
  Result<void> send(uint8_t type, std::span<const std::byte> first,
                    std::span<const std::byte> second, int timeout_ms);
  Result<void> send(uint8_t type, std::span<const std::byte> payload, int timeout_ms) {
    return send(type, payload, {}, timeout_ms);
  }
  // Nothing more comes from this side. Who wants to be sure that all has arrived waits for the
  // other's end.
  Result<void> finish(int timeout_ms);

  // The type; kEnd when the other side has finished. An Error that the other side ended with comes
  // out as that Error.
  Result<uint8_t> receive_into(std::vector<std::byte>& payload, int timeout_ms);
  Result<Frame> receive(int timeout_ms);

  void interrupt();  // both directions fail from now on
  [[nodiscard]] const std::string& host() const { return connection_->host(); }
  [[nodiscard]] Connection& connection() { return *connection_; }

  // The opener: what the other side accepted with.
  [[nodiscard]] const Message& accepted() const { return accepted_; }
  // The side that was asked, before it sends anything else.
  Result<void> accept(const Message& answer, int timeout_ms);

 private:
  friend class Streams;
  friend Result<Stream> open_stream(Pool& pool, const std::string& host, std::string_view method,
                                    const Message& argument, int timeout_ms);
  explicit Stream(Connection& connection) : connection_(&connection) {}
  explicit Stream(Lease lease) : lease_(std::move(lease)), connection_(&*lease_) {}

  Lease lease_;  // the opener's
  Connection* connection_;
  Message accepted_;
  bool accepted_by_us_ = false;
  bool finished_ = false;
};

// The timeout is for all until the other side has accepted; its refusal comes back as that Error.
Result<Stream> open_stream(Pool& pool, const std::string& host, std::string_view method,
                           const Message& argument, int timeout_ms);

// The other side. Thread-safe after the last `add`.
class Streams {
 public:
  // Runs in the connection's thread. Accepts, then talks. When it returns the stream is over: an
  // Error, before accepting or after, is sent to the opener; otherwise what was sent is given time
  // to arrive. An exception is Code::invalid.
  using Method = std::function<Result<void>(const std::string& from_host, const Message&, Stream&)>;

  void add(std::string name, Method method);
  [[nodiscard]] Server::Service service() const;  // refers to this object

 private:
  void serve(Connection& connection) const;
  Result<void> run(Connection& connection, Stream& stream) const;
  std::map<std::string, Method, std::less<>> methods_;
};

}  // namespace snow::peer
