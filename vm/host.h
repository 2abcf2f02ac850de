// The host: all VMs, images, snapshots and tickets of one daemon, and everything that can be done
// with them. api/ is a thin layer over this class; docs/fork.md tells a fork step by step.
//
// Thread-safe: every method may be called from any thread and blocks until it is done. VMs are
// named by id, unique prefix of an id, or name. JSON objects are those of api/openapi.yaml.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "guestlink/link.h"

namespace snow {

namespace peer {
class Connection;
class Pool;
}  // namespace peer

struct Settings {
  std::string state_dir = "/var/lib/snow";  // images, snapshots, disks, the record (SQLite)
  std::string run_dir = "/run/snow";        // sockets, RAM files (tmpfs), the lazyfs mount
  std::string qemu = "/usr/bin/qemu-system-x86_64";
  std::string keeper;                // snow-keeper's path; empty: beside snowd
  uint64_t memory_limit_bytes = 0;   // sum of all VMs' memory; 0: host RAM times 4
  unsigned vm_limit = 512;           // VMs that may exist at once
  unsigned fork_limit = 128;         // clones of one fork
  unsigned vcpu_limit = 0;           // sum of vCPUs; 0: 64 per host CPU
  unsigned ticket_seconds = 60;      // an unused ticket is given back after this
  unsigned agent_ready_ms = 60'000;  // a clone's agent must answer within this
  unsigned uid_base = 700'000;       // VM n runs as uid_base + n
  std::string api_group = "snow";    // may use the API socket, if the group exists
  bool use_resend = true;            // FUSE_NOTIFY_RESEND (tests switch it off)
  // In a cluster:
  unsigned lease_seconds = 10;            // after so long without the directory this host is fenced
  unsigned fill_after_seconds = 30;       // a clone's images are fetched whole from then on
  uint64_t fill_rate_bytes = 50'000'000;  // per second; 0: no limit
  bool multicast = true;                  // where it passes
  unsigned multicast_hosts = 8;           // fewer that fetch an image pass pages on instead
  bool relay = true;                      // hosts pass on what they have
  uint64_t link_rate_bytes = 0;           // of this host's link, per second; 0: it is found out
  std::string fault;                      // kills on purpose, for tests (vm/fault.h)
};

struct RunRequest {
  std::string image;           // or `from`
  std::string from;            // a snapshot
  std::string name;            // empty: made up
  unsigned count = 1;          // with `from`
  uint64_t memory_bytes = 0;   // 0: the image's or 256 MiB
  unsigned cpus = 0;           // 0: the image's or 1
  std::string kernel, initrd;  // files of the caller; empty: the image's
  std::optional<std::string> append;
  std::string accelerator = "auto";  // auto | kvm | tcg
  std::string network = "none";      // none | user
  std::string machine = "auto";      // auto | microvm | q35
  std::map<std::string, std::string> environment;
  bool wait_for_agent = false;
};

// On which hosts of the cluster clones shall be.
struct Placing {
  // local: this host only. pack: this host while it has room, then the fewest others. spread:
  // evenly over all hosts with room. Empty: local, or pack where there is a cluster.
  std::string policy;
  std::vector<std::string> hosts;  // ids or names: only these (policy empty: spread)
};

struct ForkRequest {
  std::string vm;
  unsigned count = 1;
  unsigned minimum = 0;  // 0: all of them
  Placing placing;       // without a ticket
  std::string ticket;    // of reserve(); empty: shells are started now
  std::map<std::string, std::string> parameters;
  bool wait_for_ready = true;  // until every clone's agent has answered
};

struct ImportRequest {
  std::string file;  // empty: an image without a disk (kernel and initrd)
  std::string name;
  std::string kernel, initrd, append;
  uint64_t memory_bytes = 0;
  unsigned cpus = 0;
};

struct ClusterRequest {
  std::string name;               // the cluster's
  std::string host_name;          // this host's; empty: its hostname
  std::string address;            // IP or IP:PORT that other hosts reach it by
  std::vector<std::string> etcd;  // URLs of etcd's client port
  bool plain = false;             // no TLS between hosts: only for networks that nobody else is on
};

struct JoinRequest {
  std::string token;
  std::string host_name;
  std::string address;
};

// The other hosts of the cluster, for api/: what is asked of one host and is another's to answer.
// Thread-safe.
class Neighbours {
 public:
  virtual ~Neighbours() = default;
  [[nodiscard]] virtual std::string self() const = 0;               // this host's id
  [[nodiscard]] virtual std::vector<std::string> live() const = 0;  // ids, without this one
  [[nodiscard]] virtual std::string name_of(const std::string& host) const = 0;
  [[nodiscard]] virtual peer::Pool& pool() = 0;  // its service "api": see Host::serve_api
};

class Host {
 public:
  // Takes over what an earlier daemon left: running VMs go on, forks under way are finished or
  // undone, orphans are named in the log and removed.
  static Result<std::unique_ptr<Host>> open(const Settings& settings);
  virtual ~Host() = default;  // VMs go on

  virtual Result<nlohmann::json> info() = 0;  // version, limits, use, keeper, lazyfs, accelerator

  virtual Result<nlohmann::json> import_image(const ImportRequest& request) = 0;
  virtual Result<nlohmann::json> images() = 0;
  virtual Result<nlohmann::json> image(const std::string& name) = 0;
  virtual Result<void> remove_image(const std::string& name) = 0;

  virtual Result<nlohmann::json> run(const RunRequest& request) = 0;  // array of VMs
  virtual Result<nlohmann::json> vms(bool all) = 0;                   // all: ended ones too
  virtual Result<nlohmann::json> inspect(const std::string& vm) = 0;
  virtual Result<nlohmann::json> pause(const std::string& vm) = 0;
  virtual Result<nlohmann::json> resume(const std::string& vm) = 0;
  virtual Result<nlohmann::json> stop(const std::string& vm,
                                      unsigned timeout_ms) = 0;  // asks the guest, then kills
  virtual Result<nlohmann::json> kill(const std::string& vm) = 0;
  virtual Result<void> remove(const std::string& vm, bool force) = 0;  // force: also a running one

  virtual Result<nlohmann::json> reserve(const std::string& vm, unsigned count, unsigned minimum,
                                         const Placing& placing) = 0;
  virtual Result<nlohmann::json> tickets() = 0;
  virtual Result<void> give_back(const std::string& ticket) = 0;
  // {"parent": VM, "clones": [VM...], "steps": {name: ms}, "undone": [what was not done]}
  virtual Result<nlohmann::json> fork(const ForkRequest& request) = 0;
  // What join and kill do from inside the guest, for whoever forked from the host. timeout_ms < 0:
  // for ever. {"clones": [{"index", "how", "status", "result" (base64)}]}
  virtual Result<nlohmann::json> join(const std::string& ticket, int64_t timeout_ms) = 0;
  // {"count": how many it killed}; a join then tells of all of them.
  virtual Result<nlohmann::json> kill_ticket(const std::string& ticket) = 0;

  virtual Result<nlohmann::json> snapshot(const std::string& vm, const std::string& name) = 0;
  virtual Result<nlohmann::json> snapshots() = 0;
  virtual Result<nlohmann::json> snapshot_info(const std::string& name) = 0;
  virtual Result<void> remove_snapshot(const std::string& name) = 0;

  virtual Result<std::unique_ptr<GuestStream>> exec(const std::string& vm,
                                                    const ExecRequest& request) = 0;
  virtual Result<std::unique_ptr<GuestStream>> read_file(const std::string& vm,
                                                         const std::string& path) = 0;
  virtual Result<std::unique_ptr<GuestStream>> write_file(const std::string& vm,
                                                          const std::string& path,
                                                          unsigned mode) = 0;

  // The console: what the guest's serial port printed (the last MiB), and a live connection.
  virtual Result<std::string> console_log(const std::string& vm) = 0;
  class ConsoleSession {
   public:
    virtual ~ConsoleSession() = default;
    virtual std::optional<std::string> read(int timeout_ms) = 0;  // empty string: the VM ended
    virtual Result<void> write(std::string_view bytes) = 0;
  };
  virtual Result<std::unique_ptr<ConsoleSession>> console(const std::string& vm) = 0;

  // The cluster (docs/cluster.md). Without one the last four are Code::wrong_state.
  virtual Result<nlohmann::json> make_cluster(const ClusterRequest& request) = 0;
  virtual Result<nlohmann::json> join_cluster(const JoinRequest& request) = 0;
  // {"token", "expires"}; for one host, within `seconds`.
  virtual Result<nlohmann::json> make_join_token(unsigned seconds) = 0;
  virtual Result<nlohmann::json> hosts() = 0;
  virtual Result<nlohmann::json> host(const std::string& name) = 0;
  virtual Result<nlohmann::json> drain_host(const std::string& name, bool drain) = 0;
  // Out of the cluster for good: what it held is let go, its clones count as lost. `force`:
  // although it still answers or has VMs.
  virtual Result<void> remove_host(const std::string& name, bool force) = 0;
  // Fetches all that a VM's images still lack from other hosts; then they are not needed any more.
  virtual Result<nlohmann::json> detach(const std::string& vm, int timeout_ms) = 0;

  // For requests that another host must answer; null: no cluster.
  virtual std::shared_ptr<Neighbours> neighbours() = 0;
  // What answers a neighbour that opens the service "api" here; runs on the connection's thread.
  virtual void serve_api(std::function<void(peer::Connection&)> session) = 0;

  // Events since `after` (0: only new ones), as they happen: {"seq", "time", "type", "vm", ...}.
  // Blocks at most timeout_ms; an empty array: none came.
  virtual Result<nlohmann::json> events(uint64_t after, int timeout_ms) = 0;
};

}  // namespace snow
