// STATE_DIR/cluster/cluster.json: which cluster this host belongs to and who it is there. Beside it
// lie its key, its certificate and the cluster's (peer/authority.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace snow {

struct ClusterConfig {
  std::string cluster;  // id
  std::string name;     // the cluster's
  std::string host;     // this host's id
  std::string host_name;
  std::string address;            // IP:PORT where it answers other hosts
  std::vector<std::string> etcd;  // URLs; empty: a cluster of one host, its directory is a file
  std::string authority;          // the host that signs certificates and makes join tokens
  bool plain = false;             // no TLS between hosts: no authority and no secrets either
};

inline constexpr int kDefaultPeerPort = 7171;

std::string cluster_folder(const std::string& state_dir);
// Nothing: this host is in no cluster. Code::corrupt names the file.
Result<std::optional<ClusterConfig>> read_cluster_config(const std::string& state_dir);
Result<void> write_cluster_config(const std::string& state_dir, const ClusterConfig& config);

// A cluster without TLS has no secrets; its token only says which cluster it is.
std::string plain_token(const ClusterConfig& config);
// Nothing: not such a token. Sets cluster, name, etcd and plain.
std::optional<ClusterConfig> from_plain_token(const std::string& token);

}  // namespace snow
