// This host as a member of a cluster: its certificate, its place in the directory, its connections
// to the others, and the exchange of pages with them. What is said over them is host_remote.cc's
// and host_spread.cc's.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "cluster/directory.h"
#include "cluster/membership.h"
#include "cluster/ownership.h"
#include "cluster/placement.h"
#include "cluster/registry.h"
#include "exchange/exchange.h"
#include "peer/calls.h"
#include "peer/join.h"
#include "peer/pool.h"
#include "peer/server.h"
#include "qemu/machine.h"
#include "vm/cluster_config.h"
#include "vm/context.h"
#include "vm/remote_images.h"

namespace snow {

// How many of a fork's clones a host is asked for.
struct Share {
  std::string host;  // id
  unsigned count = 0;
};

class Cluster : public Neighbours, public std::enable_shared_from_this<Cluster> {
 public:
  struct Callbacks {
    // Registered (anew): ends VMs that are not ours any more. Called again if it fails.
    std::function<Result<void>()> back;
    std::function<void(peer::Connection&)> api;  // a request that another host passes on
    RemoteImages::Release release;
  };
  // Opens everything but answers nobody before listen(). Errors name the file or address.
  static Result<std::shared_ptr<Cluster>> open(Context& context, const ClusterConfig& config,
                                               std::string qemu, std::string accelerator,
                                               Callbacks callbacks);
  ~Cluster() override;

  // The first time only: enters this host among the members.
  Result<void> become_member();
  // Once: answers other hosts, takes the lease. Without a directory this host is fenced until it
  // answers.
  Result<void> listen();
  // The daemon ends, VMs go on: no other host is answered any more; reads still are.
  void stop_serving();
  // All threads end; reads that still wait fail.
  void stop();

  [[nodiscard]] const ClusterConfig& config() const { return config_; }
  [[nodiscard]] const std::string& qemu() const { return qemu_; }
  [[nodiscard]] exchange::Exchange& exchange() { return *exchange_; }
  [[nodiscard]] RemoteImages& images() { return *images_; }
  [[nodiscard]] peer::Calls& calls() { return calls_; }  // add before listen()

  // Neighbours
  [[nodiscard]] std::string self() const override { return config_.host; }
  [[nodiscard]] std::vector<std::string> live() const override;
  [[nodiscard]] std::string name_of(const std::string& host) const override;
  [[nodiscard]] peer::Pool& pool() override { return *pool_; }

  Result<peer::Message> call(const std::string& host, std::string_view method,
                             const peer::Message& message, int timeout_ms);

  // Code::unavailable while this host is fenced.
  Result<void> may_start() const;
  // Hosts for `count` clones, without those in `except`; may be fewer, at least one.
  Result<std::vector<Share>> place(const MachineConfig& config, unsigned count,
                                   const Placing& placing, const std::set<std::string>& except);

  // Ownership of VMs here. disclaim() happens soon, on a thread of its own, and again if the
  // directory does not answer.
  Result<void> claim(const std::vector<std::string>& vms);
  void disclaim(std::vector<std::string> vms);
  // VMs on a host that is gone: nobody's from now on.
  Result<void> give_up(const std::vector<std::string>& vms);
  [[nodiscard]] bool gone_for_good(const std::string& host) const;
  // The directory's VMs of this host, and those of them that another host gave up.
  struct Owned {
    std::set<std::string> ours, given_up;
    std::set<std::string> removed_hosts;  // that still have VMs there
  };
  Result<Owned> owned();
  // VMs that were given up and have ended are on record no longer.
  Result<void> forget_given_up(const std::set<std::string>& vms);

  // {"name", "host", "host_name", "address", "etcd", "lease_left_ms", "trouble"}
  [[nodiscard]] nlohmann::json about() const;
  // {"id", "name", "address", "state", ...} of every member.
  Result<nlohmann::json> hosts();
  // Tells the others what this host keeps. One thread at a time; blocks.
  Result<void> publish(const Kept& kept) { return registry_->publish(kept); }
  Result<Kept> kept_by(const std::string& host) { return snow::kept_by(*directory_, host); }
  Result<std::string> find_host(const std::string& name) const;  // its id, by id or name
  Result<void> set_drain(const std::string& host, bool drain);
  // With all that is on record of it.
  Result<void> remove_member(const std::string& host);
  // Hosts that were members once, as far as this one knows, and are not any more.
  [[nodiscard]] std::vector<std::string> removed_members() const;
  // Of a removed member: no connection is left, and nothing that was remembered of it.
  void forget_member(const std::string& host);
  // What the directory still has of a removed member: its VMs, what it told that it keeps.
  // remove_member does it, unless this daemon was killed amid that.
  void forget_records_of(const std::string& host);
  // On the authority; other hosts ask it. {"token", "expires"}
  Result<nlohmann::json> make_token(unsigned seconds);

  void update_used();  // what this host tells of its room; called now and then

 private:
  Cluster(Context& context, ClusterConfig config, std::string qemu, std::string accelerator,
          Callbacks callbacks);
  Result<void> open_directory();
  Result<void> open_peers();
  void open_exchange();
  void disclaim_loop();
  Result<peer::Address> address_of(const std::string& host) const;
  void keep_addresses();
  void write_addresses();  // addresses_mutex_ is held by the caller
  [[nodiscard]] Resources used_here() const;
  [[nodiscard]] bool is_member(const std::string& host) const;
  Result<nlohmann::json> admit(const std::string& host, const nlohmann::json& about);

  Context& context_;
  const ClusterConfig config_;
  const std::string qemu_;
  const std::string accelerator_;
  const Callbacks callbacks_;
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<Membership> membership_;
  std::unique_ptr<Ownership> ownership_;
  std::unique_ptr<Registry> registry_;
  std::shared_ptr<const peer::Credentials> credentials_;
  std::unique_ptr<peer::Pool> pool_;
  peer::Calls calls_;
  std::unique_ptr<exchange::Exchange> exchange_;
  std::unique_ptr<RemoteImages> images_;
  std::unique_ptr<peer::TokenStore> tokens_;  // on the authority
  std::unique_ptr<peer::JoinService> joins_;
  std::unique_ptr<peer::Server> server_;

  mutable std::mutex addresses_mutex_;
  std::map<std::string, std::string> addresses_;  // by host; kept in a file for the next start

  std::mutex disclaim_mutex_;
  std::condition_variable disclaim_wake_;
  std::set<std::string> to_disclaim_;
  bool stopping_ = false;
  std::thread disclaimer_;
};

}  // namespace snow
