// Requests to etcd's v3 JSON gateway, and its answers, checked. Pure functions.
// https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/: 64-bit numbers are strings, bytes are
// base64, members with their default value are left out.
//
// Every parser: Code::corrupt for what no etcd would say.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cluster/directory.h"

namespace snow {

// What is behind `key` up to `end` (empty: just `key`), at most `limit` entries, as of `revision`
// (0: now).
std::string etcd_range_request(const std::string& key, const std::string& end, uint64_t limit,
                               uint64_t revision);
// `texts`: of the puts' values, from check_transaction. `prefix` goes before every key.
std::string etcd_txn_request(const std::string& prefix, const Transaction& transaction,
                             const std::vector<std::string>& texts);
std::string etcd_grant_request(unsigned seconds);
std::string etcd_lease_request(LeaseId lease);  // for keepalive and revoke

struct EtcdEntry {
  std::string key;
  std::string value;
  uint64_t revision = 0;
};
struct EtcdRange {
  uint64_t revision = 0;  // of the whole store
  bool more = false;      // the limit cut it off
  std::vector<EtcdEntry> entries;
};
Result<EtcdRange> parse_etcd_range(std::string_view body);
Result<bool> parse_etcd_txn(std::string_view body);  // whether the compares held
struct EtcdLease {
  LeaseId id = kNoLease;
  uint64_t seconds = 0;  // 0 in a keepalive's answer: the lease is over
};
Result<EtcdLease> parse_etcd_grant(std::string_view body);
Result<EtcdLease> parse_etcd_keep_alive(std::string_view body);

// The text of an answer that is an error; empty if it is none that etcd would give.
std::string parse_etcd_error(std::string_view body);

}  // namespace snow
