// What the directory's values say, checked: members of the cluster, registered hosts, owners of
// VMs. docs/formats.md has their tables. Pure functions. Members that are not known are ignored.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cluster/directory.h"

namespace snow {

struct Resources {
  uint64_t memory_bytes = 0;
  unsigned cpus = 0;
  unsigned vms = 0;
  bool operator==(const Resources&) const = default;
};

// "member/ID": that this host belongs to the cluster. Stays until `snow host rm`.
struct Member {
  std::string id;
  std::string name;
  std::string address;      // "IP:PORT" of its daemon
  uint64_t joined_ms = 0;   // wall clock
  uint64_t generation = 0;  // how often it has registered
  bool drain = false;       // gets no new VMs
};

// "host/ID", with a lease: that this host is alive.
struct HostRecord {
  std::string id;
  std::string name;
  std::string address;
  std::string session;   // random, kept in the host's state folder
  std::string instance;  // random, of one run of the daemon
  std::string machine;   // the kernel's boot id
  LeaseId lease = kNoLease;
  uint64_t generation = 0;  // of this registration
  uint64_t since_ms = 0;    // wall clock
  Resources capacity;
  Resources used;
  std::string qemu;         // version; a machine state fits only the same one
  std::string accelerator;  // "kvm", "tcg"
  nlohmann::json data = nlohmann::json::object();  // the daemon's own
};

// "vm/ID": who owns a VM.
struct VmRecord {
  enum class State { owned, lost };  // lost: given up, `host` had it; it may not run any more
  std::string id;
  std::string host;
  uint64_t generation = 0;  // grows by one with each change of owner, and with the loss
  State state = State::owned;
  std::string change;  // random, of the last change: who made it recognises it
  nlohmann::json info = nlohmann::json::object();
};

constexpr size_t kMaxDataBytes = 32 << 10;  // of `data` and `info`, as text

// `h` and 12 hexadecimal digits; Code::invalid.
Result<void> check_host_id(std::string_view id);

std::string member_key(std::string_view id);
std::string host_key(std::string_view id);
std::string vm_key(std::string_view id);
std::string host_name_key(std::string_view name);  // "hostname/NAME" = {"id": ID}: names are unique

nlohmann::json to_json(const Member& member);
nlohmann::json to_json(const HostRecord& host);
nlohmann::json to_json(const VmRecord& vm);

// Code::corrupt, naming the key: not such a value, or one of a newer version.
Result<Member> parse_member(const Directory::Entry& entry);
Result<HostRecord> parse_host(const Directory::Entry& entry);
Result<VmRecord> parse_vm(const Directory::Entry& entry);

// The JSON text of `data` or `info`; Code::invalid if it is not an object, too big or too deep.
Result<std::string> check_data(std::string_view what, const nlohmann::json& data);

}  // namespace snow
