// Who belongs to the cluster, whether alive or not. Any host may call these; each is one
// transaction.
#pragma once

#include <string>
#include <vector>

#include "cluster/directory.h"
#include "cluster/values.h"

namespace snow {

// Code::exists: a member has this id or this name.
Result<void> add_member(Directory& directory, const Member& member);
// By id. A value that cannot be read fails the call, unless `damaged` is given.
Result<std::vector<Member>> list_members(Directory& directory,
                                         std::vector<Directory::Damaged>* damaged = nullptr);
// Also ends its registration: if it is alive, it is fenced from its next renewal on. VMs that it
// owns stay on record (Ownership::give_up). Code::not_found.
Result<void> remove_member(Directory& directory, const std::string& id);
// Code::not_found.
Result<void> set_drain(Directory& directory, const std::string& id, bool drain);

}  // namespace snow
