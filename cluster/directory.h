// The directory: the cluster's one truth, small JSON values by key. Which hosts there are, who owns
// which VM. Two implementations that behave alike: SqliteDirectory for one host, EtcdDirectory for
// several (cluster/directory_test.cc holds both to the same contract).
//
// Thread-safe. Every method may block for some seconds (etcd) or milliseconds (SQLite). Errors:
//   Code::unavailable  nobody answered; nothing was changed
//   Code::timed_out    a commit was sent and no answer came: it may or may not have happened
//   Code::corrupt      a value under our keys is not JSON, or too big (the key is named)
//   Code::invalid      a key, value or transaction outside the limits below
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace snow {

using LeaseId = uint64_t;  // 0: none
constexpr LeaseId kNoLease = 0;

// A change happens if all compares hold, whole or not at all.
struct Transaction {
  static constexpr uint64_t kAbsent = 0;            // the key must not exist
  static constexpr uint64_t kPresent = UINT64_MAX;  // the key must exist, whatever its revision
  struct Compare {
    std::string key;
    uint64_t revision = kAbsent;
  };
  struct Put {
    std::string key;
    nlohmann::json value;
    LeaseId lease = kNoLease;  // the key vanishes with the lease; each put decides anew
  };
  std::vector<Compare> compares;
  std::vector<Put> puts;
  std::vector<std::string> removes;  // keys; one that is not there is fine
};

class Directory {
 public:
  static constexpr size_t kMaxKeyBytes = 200;
  static constexpr size_t kMaxValueBytes = size_t{64} << 10;  // as JSON text
  static constexpr size_t kMaxOperations = 128;  // compares, and puts with removes: etcd's limit
  static constexpr size_t kMaxTransactionBytes = size_t{1} << 20;  // etcd takes 1.5 MiB
  static constexpr unsigned kMaxLeaseSeconds = 24 * 3600;

  struct Entry {
    std::string key;
    nlohmann::json value;
    uint64_t revision = 0;  // of its last change; grows with every change in the directory
  };
  struct Damaged {
    std::string key;
    Error error;  // names the key too
  };

  Directory() = default;
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  virtual ~Directory() = default;

  virtual Result<std::optional<Entry>> get(const std::string& key) = 0;
  // All whose key begins with `prefix` (which may be empty), by key, as of one moment. A value that
  // is not JSON fails the call, unless `damaged` is given: it then gets each such key.
  virtual Result<std::vector<Entry>> list(const std::string& prefix,
                                          std::vector<Damaged>* damaged = nullptr) = 0;
  // False: a compare did not hold, nothing was changed. Code::not_found: a put's lease is gone.
  virtual Result<bool> commit(const Transaction& transaction) = 0;

  // A lease ends `seconds` after it was granted or last kept alive, never earlier, perhaps a few
  // seconds later. keep_alive and revoke of one that ended are Code::not_found.
  virtual Result<LeaseId> grant(unsigned seconds) = 0;
  virtual Result<void> keep_alive(LeaseId lease) = 0;
  virtual Result<void> revoke(LeaseId lease) = 0;  // its keys vanish at once
};

// For implementations. Keys are parts of letters, digits and _.- with '/' between them.
Result<void> check_key(std::string_view key);
Result<void> check_prefix(std::string_view prefix);
Result<void> check_lease_seconds(unsigned seconds);
// The texts of the puts' values, in their order; Code::invalid beyond the limits above or where one
// key is changed twice.
Result<std::vector<std::string>> check_transaction(const Transaction& transaction);
// A key that anybody may have made, fit for a message: bytes that are not ASCII text become '?'.
std::string printable_key(std::string_view key);
// A stored value. `key` is for the message of Code::corrupt: too big, too deep, not JSON.
Result<nlohmann::json> parse_stored_value(std::string_view key, std::string_view text);
// The first string behind all that begin with `prefix`; empty if there is none.
std::string end_of_prefix(std::string prefix);

}  // namespace snow
