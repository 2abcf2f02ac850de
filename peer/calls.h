// Calls to another host: a method with a JSON argument and an attachment of bytes, and an answer of
// the same kind or an Error. Over service "calls", one call at a time on a connection.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "peer/pool.h"
#include "peer/server.h"

namespace snow::peer {

struct Message {
  nlohmann::json json;
  std::vector<std::byte> bytes;
};

// Waits for the answer. The remote's Error comes back as that Error, code and message. A connection
// from the pool that turns out to be dead when the request is sent is replaced once: a request that
// was not sent whole was not carried out. When the answer does not come (Code::timed_out,
// Code::unavailable), nobody knows whether it was.
Result<Message> call(Pool& pool, const std::string& host, std::string_view method,
                     const Message& argument, int timeout_ms);

// The other side. Thread-safe after the last `add`.
class Calls {
 public:
  using Method = std::function<Result<Message>(const std::string& from_host, const Message&)>;

  // Runs in the connection's thread. An exception, as JSON of the wrong shape throws, becomes
  // Code::invalid.
  void add(std::string name, Method method);
  [[nodiscard]] Server::Service service() const;  // refers to this object

  // One call: what service() does with each frame. For tests.
  [[nodiscard]] Result<Message> answer(const std::string& from_host,
                                       std::span<const std::byte> request) const;

 private:
  void serve(Connection& connection) const;
  std::map<std::string, Method, std::less<>> methods_;
};

// The frames' payloads: pure.
//   call    u8 length, method | u32 length (LE), JSON | attachment
//   answer  u32 length (LE), JSON | attachment
// `encode_…` gives what stands before the attachment.
struct Request {
  std::string method;
  Message argument;
};
std::vector<std::byte> encode_call(std::string_view method, const nlohmann::json& json);
std::vector<std::byte> encode_answer(const nlohmann::json& json);
Result<Request> decode_call(std::span<const std::byte> payload);
Result<Message> decode_answer(std::span<const std::byte> payload);

inline constexpr uint8_t kCall = kFirstFree;
inline constexpr uint8_t kAnswer = kFirstFree + 1;

}  // namespace snow::peer
