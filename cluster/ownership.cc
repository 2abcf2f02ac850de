#include "cluster/ownership.h"

#include <algorithm>

#include "base/file.h"
#include "base/names.h"

namespace snow {
namespace {

constexpr int kAttempts = 10;  // of a read and a change that compares with it
constexpr size_t kRemovesAtOnce = 64;
constexpr size_t kRoomForRecordBytes = 512;  // a record without its info, with its key

}  // namespace

Result<bool> Ownership::commit(const Transaction& transaction) {
  auto done = directory_.commit(transaction);
  if (done || done.error().code != Code::timed_out) return done;
  auto again = directory_.commit(transaction);
  // Whatever that failed for, it says nothing about the first.
  return again ? again : done;
}

Result<void> Ownership::claim(const std::vector<std::string>& ids, const std::string& host,
                              const nlohmann::json& info) {
  SNOW_TRY(check_host_id(host));
  for (const auto& id : ids) SNOW_TRY(check_name("VM", id));
  SNOW_ASSIGN(const std::string text, check_data("info", info));
  VmRecord pattern;
  pattern.host = host;
  pattern.generation = 1;
  pattern.change = random_hex(8);
  pattern.info = info;
  const size_t batch =
      std::min(Directory::kMaxOperations - 1,  // the host is compared too
               Directory::kMaxTransactionBytes / (text.size() + kRoomForRecordBytes));
  for (size_t begin = 0; begin < ids.size(); begin += batch) {
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last =
        ids.begin() + static_cast<std::ptrdiff_t>(std::min(begin + batch, ids.size()));
    if (auto claimed = claim_batch({first, last}, pattern); !claimed) {
      // Best effort: what cannot be undone now, mine() will show.
      (void)remove_where({ids.begin(), last},
                         [&](const VmRecord& vm) { return vm.change == pattern.change; });
      return claimed;
    }
  }
  return {};
}

Result<void> Ownership::claim_batch(const std::vector<std::string>& ids, const VmRecord& pattern) {
  Transaction transaction;
  transaction.compares.push_back({host_key(pattern.host), Transaction::kPresent});
  for (const auto& id : ids) {
    transaction.compares.push_back({vm_key(id), Transaction::kAbsent});
    transaction.puts.push_back({vm_key(id), to_json(pattern), kNoLease});
  }
  SNOW_ASSIGN(const bool done, commit(transaction));
  if (done) return {};
  return why_not_claimed(ids, pattern);
}

Result<void> Ownership::why_not_claimed(const std::vector<std::string>& ids,
                                        const VmRecord& pattern) {
  size_t ours = 0;
  for (const auto& id : ids) {
    SNOW_ASSIGN(const auto vm, owner(id));
    if (!vm) continue;
    if (vm->change != pattern.change) {
      return fail(Code::exists, "VM '{}' belongs to host '{}' already (generation {})", id,
                  vm->host, vm->generation);
    }
    ++ours;
  }
  if (ours == ids.size()) return {};  // the answer to the first attempt had got lost
  SNOW_ASSIGN(const auto host, directory_.get(host_key(pattern.host)));
  if (!host) {
    return fail(Code::wrong_state,
                "host '{}' holds no lease in the cluster, so it may not own new VMs; it registers "
                "again by itself when the directory answers",
                pattern.host);
  }
  return fail(Code::unavailable, "VMs of host '{}': the directory changed meanwhile; try again",
              pattern.host);
}

Result<void> Ownership::release(const std::vector<std::string>& ids, const std::string& host) {
  return remove_where(ids, [&](const VmRecord& vm) {
    return vm.host == host && vm.state == VmRecord::State::owned;
  });
}

Result<void> Ownership::forget_lost(const std::vector<std::string>& ids) {
  return remove_where(ids, [](const VmRecord& vm) { return vm.state == VmRecord::State::lost; });
}

Result<void> Ownership::forget_host(const std::string& host) {
  SNOW_TRY(check_host_id(host));
  SNOW_ASSIGN(const auto member, directory_.get(member_key(host)));
  if (member) {
    return fail(Code::wrong_state, "host '{}' is a member of the cluster, and owns its VMs", host);
  }
  std::vector<Directory::Damaged> damaged;  // somebody else's matter
  SNOW_ASSIGN(const auto vms, all(&damaged));
  std::vector<std::string> ids;
  for (const VmRecord& vm : vms) {
    if (vm.host == host) ids.push_back(vm.id);
  }
  return remove_where(ids, [&](const VmRecord& vm) { return vm.host == host; },
                      {{member_key(host), Transaction::kAbsent}});
}

Result<void> Ownership::remove_where(const std::vector<std::string>& ids,
                                     const std::function<bool(const VmRecord&)>& which,
                                     const std::vector<Transaction::Compare>& conditions) {
  int attempts = 0;
  for (size_t begin = 0; begin < ids.size();) {
    const size_t end = std::min(begin + kRemovesAtOnce, ids.size());
    Transaction transaction;
    transaction.compares = conditions;
    for (size_t i = begin; i < end; ++i) {
      SNOW_ASSIGN(const auto entry, directory_.get(vm_key(ids[i])));
      if (!entry) continue;
      SNOW_ASSIGN(const VmRecord vm, parse_vm(*entry));
      if (!which(vm)) continue;
      transaction.compares.push_back({entry->key, entry->revision});
      transaction.removes.push_back(entry->key);
    }
    if (!transaction.removes.empty()) {
      SNOW_ASSIGN(const bool done, commit(transaction));
      if (!done) {  // one changed, or it was done and the answer got lost: look again
        if (++attempts == kAttempts) {
          return fail(Code::unavailable, "VM '{}': its record changes all the time; try again",
                      ids[begin]);
        }
        continue;
      }
    }
    begin = end;
    attempts = 0;
  }
  return {};
}

Result<std::optional<VmRecord>> Ownership::owner(const std::string& id) {
  SNOW_TRY(check_name("VM", id));
  SNOW_ASSIGN(const auto entry, directory_.get(vm_key(id)));
  if (!entry) return std::nullopt;
  SNOW_ASSIGN(VmRecord vm, parse_vm(*entry));
  return std::optional<VmRecord>(std::move(vm));
}

Result<std::vector<VmRecord>> Ownership::all(std::vector<Directory::Damaged>* damaged) {
  SNOW_ASSIGN(const auto entries, directory_.list("vm/", damaged));
  std::vector<VmRecord> vms;
  for (const auto& entry : entries) {
    auto vm = parse_vm(entry);
    if (vm) {
      vms.push_back(std::move(*vm));
    } else if (damaged != nullptr) {
      damaged->push_back({entry.key, vm.error()});
    } else {
      return tl::unexpected<Error>(vm.error());
    }
  }
  return vms;
}

Result<std::vector<VmRecord>> Ownership::mine(const std::string& host) {
  // A damaged record may be one of ours: to leave it out would end a VM.
  SNOW_ASSIGN(std::vector<VmRecord> vms, all());
  std::erase_if(vms, [&](const VmRecord& vm) {
    return vm.host != host || vm.state != VmRecord::State::owned;
  });
  return vms;
}

Result<VmRecord> Ownership::change(const std::string& id, uint64_t generation,
                                   const std::function<void(VmRecord&, Transaction&)>& how,
                                   const char* refusal) {
  SNOW_TRY(check_name("VM", id));
  const std::string mark = random_hex(8);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    SNOW_ASSIGN(const auto entry, directory_.get(vm_key(id)));
    if (!entry) return fail(Code::not_found, "VM '{}': no host owns it", id);
    SNOW_ASSIGN(VmRecord vm, parse_vm(*entry));
    if (vm.change == mark) return vm;  // done before; the answer had got lost
    if (vm.generation != generation || vm.state != VmRecord::State::owned) {
      return fail(Code::wrong_state, "VM '{}': {} host '{}' as generation {}, not {}", id,
                  vm.state == VmRecord::State::owned ? "it belongs to" : "it was lost with",
                  vm.host, vm.generation, generation);
    }
    Transaction transaction;
    transaction.compares.push_back({entry->key, entry->revision});
    how(vm, transaction);
    vm.change = mark;
    transaction.puts.push_back({entry->key, to_json(vm), kNoLease});
    SNOW_ASSIGN(const bool done, commit(transaction));
    if (done) return vm;
    SNOW_ASSIGN(const auto now, directory_.get(vm_key(id)));
    if (now && now->revision == entry->revision) {
      return fail(Code::wrong_state, "VM '{}': {}", id, refusal);
    }
  }
  return fail(Code::unavailable, "VM '{}': its record changes all the time; try again", id);
}

Result<VmRecord> Ownership::give_up(const std::string& id, uint64_t generation) {
  return change(
      id, generation,
      [](VmRecord& vm, Transaction& transaction) {
        transaction.compares.push_back({host_key(vm.host), Transaction::kAbsent});
        vm.state = VmRecord::State::lost;
        ++vm.generation;
      },
      "its host holds a lease, so it cannot be given up");
}

Result<VmRecord> Ownership::transfer(const std::string& id, uint64_t generation,
                                     const std::string& to) {
  SNOW_TRY(check_host_id(to));
  return change(
      id, generation,
      [&](VmRecord& vm, Transaction& transaction) {
        transaction.compares.push_back({host_key(to), Transaction::kPresent});
        vm.host = to;
        ++vm.generation;
      },
      "the host that should get it holds no lease");
}

Result<VmRecord> Ownership::set_info(const std::string& id, uint64_t generation,
                                     const nlohmann::json& info) {
  SNOW_TRY(check_data("info", info));
  return change(
      id, generation, [&](VmRecord& vm, Transaction&) { vm.info = info; },
      "the directory refused the change");
}

}  // namespace snow
