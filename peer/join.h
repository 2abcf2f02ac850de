// A new host becomes a member: service "join", the only one that is open to a peer without
// certificate. docs/peer-protocol.md tells the exchange; the order is what makes it safe: the new
// host knows the authority by the hash in its token before it sends the secret, and its key never
// leaves it.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "peer/server.h"
#include "peer/token_store.h"

namespace snow::peer {

inline constexpr std::string_view kJoinService = "join";

struct Joined {
  nlohmann::json cluster;      // what the authority's `admit` said
  std::string authority_host;  // its id
  Address authority_address;   // where it answered
};

// Writes ca.pem, host.pem and host-key.pem into `folder` (authority.h). `about`: what the authority
// is told of this host (name, address...). Code::denied for a token that does not let in. May be
// repeated with the same folder and host after a failure.
Result<Joined> join(const std::string& folder, std::string_view token, const std::string& host,
                    const nlohmann::json& about, int timeout_ms);

// The authority's side. Thread-safe.
class JoinService {
 public:
  // Decides about a host with a good token, and describes the cluster to it. May be called again
  // for the same host.
  using Admit =
      std::function<Result<nlohmann::json>(const std::string& host, const nlohmann::json& about)>;

  JoinService(std::string folder, TokenStore& tokens, Admit admit);
  void add_to(Server& server);  // refers to this object

 private:
  void serve(Connection& connection);
  Result<std::vector<std::byte>> answer(std::span<const std::byte> request);

  const std::string folder_;
  TokenStore& tokens_;
  const Admit admit_;
};

// The frames' payloads: pure.
struct JoinRequest {
  Secret secret{};
  std::string host;
  std::string request_pem;
  std::string about;  // JSON text
};
struct JoinAnswer {
  std::string certificate_pem, ca_pem;
  std::string cluster;  // JSON text
};
std::vector<std::byte> encode(const JoinRequest& request);
std::vector<std::byte> encode(const JoinAnswer& answer);
Result<JoinRequest> decode_join_request(std::span<const std::byte> payload);
Result<JoinAnswer> decode_join_answer(std::span<const std::byte> payload);

inline constexpr uint8_t kJoin = kFirstFree;
inline constexpr uint8_t kJoined = kFirstFree + 1;

}  // namespace snow::peer
