// Which host owns which VM: "vm/ID" = {host, generation, ...}. A VM has one owner; every change of
// owner compares the record as it was and raises the generation.
//
// Thread-safe; no state of its own. A change whose answer got lost is recognised when it is made
// again, so Code::timed_out is only left when the directory stays silent: then the change may or
// may not have happened, and mine() or owner() tell later.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cluster/directory.h"
#include "cluster/values.h"

namespace snow {

class Ownership {
 public:
  explicit Ownership(Directory& directory) : directory_(directory) {}

  // `host` owns these new VMs from now on, generation 1. All or none of them (a failure in between
  // is undone). Code::exists: one of the ids is taken; Code::wrong_state: `host` holds no lease.
  Result<void> claim(const std::vector<std::string>& ids, const std::string& host,
                     const nlohmann::json& info = nlohmann::json::object());
  // Those of the VMs that `host` owns are on record no longer; others are left alone.
  Result<void> release(const std::vector<std::string>& ids, const std::string& host);
  // The same for VMs that were given up.
  Result<void> forget_lost(const std::vector<std::string>& ids);
  // The same for all VMs, lost or not, of a host that was removed from the cluster.
  // Code::wrong_state: it is a member.
  Result<void> forget_host(const std::string& host);

  Result<std::optional<VmRecord>> owner(const std::string& id);
  Result<std::vector<VmRecord>> mine(const std::string& host);  // without the lost ones; by id
  // All, also the lost ones. A record that cannot be read fails the call, unless `damaged` is
  // given.
  Result<std::vector<VmRecord>> all(std::vector<Directory::Damaged>* damaged = nullptr);

  // The VM's host is gone: the VM is lost, and that host will end it when it comes back.
  // Code::wrong_state: the generation is another, or the host holds a lease (again).
  Result<VmRecord> give_up(const std::string& id, uint64_t generation);
  // To a host that holds a lease. Code::wrong_state: it does not, or the generation is another.
  Result<VmRecord> transfer(const std::string& id, uint64_t generation, const std::string& to);
  // Replaces `info`; the generation stays.
  Result<VmRecord> set_info(const std::string& id, uint64_t generation, const nlohmann::json& info);

 private:
  Result<void> claim_batch(const std::vector<std::string>& ids, const VmRecord& pattern);
  Result<void> why_not_claimed(const std::vector<std::string>& ids, const VmRecord& pattern);
  Result<VmRecord> change(const std::string& id, uint64_t generation,
                          const std::function<void(VmRecord&, Transaction&)>& how,
                          const char* refusal);
  Result<void> remove_where(const std::vector<std::string>& ids,
                            const std::function<bool(const VmRecord&)>& which,
                            const std::vector<Transaction::Compare>& conditions = {});
  // Again, if the answer got lost.
  Result<bool> commit(const Transaction& transaction);

  Directory& directory_;
};

}  // namespace snow
