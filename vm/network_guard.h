// Keeps guests with `--net user` away from the host itself. Their QEMUs open sockets in the host's
// network namespace, so that a guest could reach what listens on the host's 127.0.0.1 by way of
// 10.0.2.2. One nftables table per daemon refuses, for the users that VMs run as, everything that
// leaves through the loopback interface (which is where all of the host's own addresses are), but
// questions to a name server there.
//
// The table outlives the daemon as the VMs do. `nft flush ruleset` removes it like any other;
// refresh() puts it back. Thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <mutex>
#include <string>

#include "base/result.h"

namespace snow {

class NetworkGuard {
 public:
  // `run_dir` tells this daemon's table from those of others; users from `uid_base` on.
  NetworkGuard(const std::string& run_dir, uid_t uid_base);

  // The table is there when this returns; before a QEMU with a network starts. Code::host_failed
  // if there is no nftables: such a QEMU must not start then.
  Result<void> ensure();
  // The same, if it was ensured before and some seconds have passed; failures are logged.
  void refresh();
  // Removes the table if there is one: no VM is left.
  void remove();

  [[nodiscard]] const std::string& table() const { return table_; }
  [[nodiscard]] std::string rules() const;  // what ensure() gives to nft

 private:
  Result<void> apply();

  const std::string table_;
  const uid_t uid_base_;
  std::mutex mutex_;
  int64_t applied_ns_ = 0;  // 0: never
};

}  // namespace snow
