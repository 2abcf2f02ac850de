#include "cluster/members.h"

#include <functional>

#include "base/names.h"

namespace snow {
namespace {

constexpr int kAttempts = 10;  // of a read and a change that compares with it

// Reads the member, lets `change` fill in what to do about it, and does that if nobody else was
// faster; then again.
Result<void> change_member(Directory& directory, const std::string& id,
                           const std::function<void(Member, Transaction&)>& change) {
  SNOW_TRY(check_host_id(id));
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    SNOW_ASSIGN(const auto entry, directory.get(member_key(id)));
    if (!entry) {
      return fail(Code::not_found, "host '{}': no such member of the cluster; `snow host ls`", id);
    }
    SNOW_ASSIGN(const Member member, parse_member(*entry));
    Transaction transaction;
    transaction.compares.push_back({entry->key, entry->revision});
    change(member, transaction);
    SNOW_ASSIGN(const bool done, directory.commit(transaction));
    if (done) return {};
  }
  return fail(Code::unavailable, "host '{}': its record changes all the time; try again", id);
}

}  // namespace

Result<void> add_member(Directory& directory, const Member& member) {
  SNOW_TRY(check_host_id(member.id));
  SNOW_TRY(check_name("host", member.name));
  Transaction transaction;
  transaction.compares.push_back({member_key(member.id), Transaction::kAbsent});
  transaction.compares.push_back({host_name_key(member.name), Transaction::kAbsent});
  transaction.puts.push_back({member_key(member.id), to_json(member), kNoLease});
  transaction.puts.push_back({host_name_key(member.name), {{"id", member.id}}, kNoLease});
  SNOW_ASSIGN(const bool done, directory.commit(transaction));
  if (done) return {};
  SNOW_ASSIGN(const auto same_id, directory.get(member_key(member.id)));
  if (same_id) return fail(Code::exists, "host '{}' is a member of the cluster already", member.id);
  return fail(Code::exists,
              "a host named '{}' is a member of the cluster already; choose another name, or "
              "`snow host rm {}` first",
              member.name, member.name);
}

Result<std::vector<Member>> list_members(Directory& directory,
                                         std::vector<Directory::Damaged>* damaged) {
  SNOW_ASSIGN(const auto entries, directory.list("member/", damaged));
  std::vector<Member> members;
  for (const auto& entry : entries) {
    auto member = parse_member(entry);
    if (member) {
      members.push_back(std::move(*member));
    } else if (damaged != nullptr) {
      damaged->push_back({entry.key, member.error()});
    } else {
      return tl::unexpected<Error>(member.error());
    }
  }
  return members;
}

Result<void> remove_member(Directory& directory, const std::string& id) {
  return change_member(directory, id, [](const Member& member, Transaction& transaction) {
    transaction.removes = {member_key(member.id), host_name_key(member.name), host_key(member.id)};
  });
}

Result<void> set_drain(Directory& directory, const std::string& id, bool drain) {
  return change_member(directory, id, [&](Member member, Transaction& transaction) {
    member.drain = drain;
    transaction.puts.push_back({member_key(id), to_json(member), kNoLease});
  });
}

}  // namespace snow
