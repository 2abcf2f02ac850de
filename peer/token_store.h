// The authority's record of join tokens: tokens.json in its folder, with a hash of each secret,
// when it ends and who used it. Thread-safe; one object for a folder.
#pragma once

#include <functional>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "peer/token.h"

namespace snow::peer {

class TokenStore {
 public:
  using Clock = std::function<int64_t()>;  // wall clock, nanoseconds
  explicit TokenStore(std::string folder, Clock clock = {});

  // A new token's text, good once and for so long. `addresses`: where this host listens.
  Result<std::string> make(const std::vector<Address>& addresses, int64_t valid_seconds);

  // Is this the secret of any token, used or over? Code::denied otherwise.
  Result<void> check_secret(const Secret& secret);
  // May this secret let a host in that has this key? Code::denied, and why: no such token, over,
  // or used by another host. Who used it may use it again with the same key until it is over: the
  // answer may have been lost.
  Result<void> check(const Secret& secret, const std::string& key_hash);
  // check; then `admit`; then the token is used up, on disk, before this returns. If `admit` fails
  // it is not. Only one at a time.
  Result<void> spend(const Secret& secret, const std::string& host, const std::string& key_hash,
                     const std::function<Result<void>()>& admit);

 private:
  Result<nlohmann::json> load() const;
  Result<void> save(const nlohmann::json& tokens) const;
  Result<void> look_up(const nlohmann::json& tokens, const Secret& secret,
                       const std::string& key_hash, size_t& at) const;

  const std::string folder_;
  const Clock clock_;
  std::mutex mutex_;  // of the file
};

}  // namespace snow::peer
