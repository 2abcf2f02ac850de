// The directory in an etcd (3.4 or newer) through its v3 JSON gateway, for a cluster of several
// hosts. All reads are linearizable. Nothing but keys under our prefix is read or written.
#pragma once

#include <memory>
#include <string>

#include "cluster/directory.h"
#include "cluster/etcd_http.h"

namespace snow {

class EtcdDirectory : public Directory {
 public:
  // Does not connect yet. Code::invalid: endpoints or prefix are not what they should be.
  static Result<std::unique_ptr<EtcdDirectory>> make(EtcdOptions options);

  Result<std::optional<Entry>> get(const std::string& key) override;
  Result<std::vector<Entry>> list(const std::string& prefix,
                                  std::vector<Damaged>* damaged = nullptr) override;
  Result<bool> commit(const Transaction& transaction) override;
  // etcd may give more than was asked for (its least is 1.5 times its election timeout).
  Result<LeaseId> grant(unsigned seconds) override;
  Result<void> keep_alive(LeaseId lease) override;
  Result<void> revoke(LeaseId lease) override;

 private:
  EtcdDirectory(std::string prefix, std::unique_ptr<EtcdHttp> http)
      : prefix_(std::move(prefix)), http_(std::move(http)) {}

  const std::string prefix_;
  const std::unique_ptr<EtcdHttp> http_;
};

}  // namespace snow
