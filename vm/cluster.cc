#include "vm/cluster.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"
#include "base/names.h"
#include "cluster/etcd_directory.h"
#include "cluster/sqlite_directory.h"
#include "peer/authority.h"
#include "vm/time_text.h"

namespace snow {
namespace {

constexpr auto kDisclaimPause = std::chrono::seconds(2);
constexpr size_t kOwnershipRetries = 3;
constexpr int kTokenTimeoutMs = 5'000;

PlacementPolicy policy_of(const Placing& placing) {
  PlacementPolicy policy;
  policy.hosts = placing.hosts;
  if (!placing.hosts.empty()) {
    policy.kind = PlacementPolicy::Kind::named;
  } else if (placing.policy == "local") {
    policy.kind = PlacementPolicy::Kind::local;
  } else if (placing.policy == "spread") {
    policy.kind = PlacementPolicy::Kind::spread;
  } else {
    policy.kind = PlacementPolicy::Kind::pack;
  }
  return policy;
}

// Random text of this state folder, by which the next daemon on it takes the registration over.
Result<std::string> session_of(const std::string& folder) {
  const std::string path = folder + "/session";
  if (auto text = read_file(path)) return *text;
  const std::string text = random_hex(16);
  SNOW_TRY(write_file(path, text, 0600));
  return text;
}

}  // namespace

Cluster::Cluster(Context& context, ClusterConfig config, std::string qemu, std::string accelerator,
                 Callbacks callbacks)
    : context_(context),
      config_(std::move(config)),
      qemu_(std::move(qemu)),
      accelerator_(std::move(accelerator)),
      callbacks_(std::move(callbacks)) {}

Cluster::~Cluster() { stop(); }

Result<std::shared_ptr<Cluster>> Cluster::open(Context& context, const ClusterConfig& config,
                                               std::string qemu, std::string accelerator,
                                               Callbacks callbacks) {
  std::shared_ptr<Cluster> cluster(
      new Cluster(context, config, std::move(qemu), std::move(accelerator), std::move(callbacks)));
  SNOW_TRY(cluster->open_directory());
  SNOW_TRY(cluster->open_peers());
  cluster->open_exchange();
  return cluster;
}

Result<void> Cluster::open_directory() {
  const std::string folder = cluster_folder(context_.settings.state_dir);
  if (config_.etcd.empty()) {
    SNOW_ASSIGN(directory_, SqliteDirectory::open(folder + "/directory.db"));
  } else {
    EtcdOptions options;
    options.endpoints = config_.etcd;
    options.prefix = "/snow/" + config_.cluster + "/";
    SNOW_ASSIGN(directory_, EtcdDirectory::make(options));
  }
  ownership_ = std::make_unique<Ownership>(*directory_);
  registry_ = std::make_unique<Registry>(*directory_, config_.host);
  if (const auto text = read_file(folder + "/addresses.json")) {
    const auto json = nlohmann::json::parse(*text, nullptr, false);
    if (json.is_object()) {
      for (const auto& [host, address] : json.items()) {
        if (address.is_string()) addresses_[host] = address.get<std::string>();
      }
    }
  }
  Membership::Options options;
  options.id = config_.host;
  options.address = config_.address;
  options.qemu = qemu_;
  options.accelerator = accelerator_;
  const auto& limits = context_.admission->limits();
  options.capacity = {limits.memory_bytes, limits.vcpus, limits.vms};
  SNOW_ASSIGN(options.session, session_of(folder));
  options.lease_seconds = context_.settings.lease_seconds;
  Membership::Callbacks callbacks;
  callbacks.fenced = [this](const std::string& why) {
    log_warn("cluster {}: this host is fenced, it starts no VMs: {}", config_.name, why);
  };
  callbacks.back = [this] { return callbacks_.back(); };
  membership_ = std::make_unique<Membership>(*directory_, options, callbacks);
  return {};
}

Result<void> Cluster::open_peers() {
  peer::Identity identity =
      peer::identity_in(cluster_folder(context_.settings.state_dir), config_.host);
  identity.plain = identity.plain_anywhere = config_.plain;
  SNOW_ASSIGN(credentials_, peer::Credentials::load(identity));
  pool_ = std::make_unique<peer::Pool>(
      credentials_, [this](const std::string& host) { return address_of(host); });
  peer::Server::Options options;
  options.admission = [this](const std::string& host, const std::string& service) -> Result<void> {
    if (service == "join") return {};
    if (is_member(host)) return {};
    (void)membership_->refresh();  // it may have joined since we last looked
    if (is_member(host)) return {};
    return fail(Code::denied, "host {}: not a member of the cluster (any more)", host);
  };
  server_ = std::make_unique<peer::Server>(credentials_, options);
  server_->add("calls", calls_.service());
  server_->add("api", callbacks_.api);
  if (config_.authority == config_.host && !config_.plain) {
    const std::string folder = cluster_folder(context_.settings.state_dir);
    tokens_ = std::make_unique<peer::TokenStore>(folder);
    joins_ = std::make_unique<peer::JoinService>(
        folder, *tokens_, [this](const std::string& host, const nlohmann::json& about) {
          return admit(host, about);
        });
    joins_->add_to(*server_);
  }
  return {};
}

Result<nlohmann::json> Cluster::make_token(unsigned seconds) {
  if (config_.plain) {
    return nlohmann::json{{"token", plain_token(config_)}, {"expires", nullptr}};
  }
  if (!tokens_) {
    SNOW_ASSIGN(const auto answer,
                call(config_.authority, "token", {{{"seconds", seconds}}, {}}, kTokenTimeoutMs));
    return answer.json;
  }
  if (config_.etcd.empty()) {
    return fail(Code::wrong_state,
                "cluster '{}' has no etcd, so no other host can join; make it anew with `snow "
                "cluster init --etcd URL`",
                config_.name);
  }
  SNOW_ASSIGN(const auto address, peer::parse_address(config_.address));
  SNOW_ASSIGN(const std::string token, tokens_->make({address}, seconds));
  return nlohmann::json{{"token", token},
                        {"expires", rfc3339(wall_clock_ns() + int64_t{seconds} * kSecondNs)}};
}

void Cluster::open_exchange() {
  exchange::Options options;
  options.host = config_.host;
  options.relay = context_.settings.relay;
  if (!config_.plain) {
    options.key_file = cluster_folder(context_.settings.state_dir) + "/host-key.pem";
  }
  if (const auto address = peer::parse_address(config_.address);
      address && context_.settings.multicast && address->ip.find(':') == std::string::npos) {
    options.multicast.enabled = true;
    options.multicast.interface_address = address->ip;
    options.multicast.hosts_least = context_.settings.multicast_hosts;
    if (context_.settings.link_rate_bytes != 0) {
      options.multicast.bytes_per_second = context_.settings.link_rate_bytes;
    }
  }
  exchange_ = std::make_unique<exchange::Exchange>(*pool_, options);
  exchange_->serve(*server_);
  images_ = std::make_unique<RemoteImages>(
      *exchange_,
      RemoteImages::Options{context_.cache_dir(), context_.settings.fill_rate_bytes,
                            context_.settings.fill_after_seconds * 1000},
      callbacks_.release);
}

Result<void> Cluster::listen() {
  SNOW_ASSIGN(const auto address, peer::parse_address(config_.address));
  SNOW_TRY(server_->start(address));
  disclaimer_ = std::thread([this] { disclaim_loop(); });
  return membership_->start();
}

void Cluster::stop_serving() {
  {
    const std::lock_guard lock(disclaim_mutex_);
    stopping_ = true;
  }
  disclaim_wake_.notify_all();
  if (disclaimer_.joinable()) disclaimer_.join();
  if (membership_) membership_->stop();
  if (server_) server_->stop();
}

void Cluster::stop() {
  stop_serving();
  if (exchange_) exchange_->stop();
}

Result<peer::Message> Cluster::call(const std::string& host, std::string_view method,
                                    const peer::Message& message, int timeout_ms) {
  return peer::call(*pool_, host, method, message, timeout_ms);
}

Result<void> Cluster::may_start() const {
  if (!membership_->fenced()) return {};
  const std::string why = membership_->trouble();
  return fail(Code::unavailable,
              "this host is fenced: it has no lease in the cluster's directory{}{}; it starts and "
              "resumes VMs again when the directory answers (`snow host ls`)",
              why.empty() ? "" : ": ", why);
}

Result<std::vector<Share>> Cluster::place(const MachineConfig& config, unsigned count,
                                          const Placing& placing,
                                          const std::set<std::string>& except) {
  std::vector<PlacementHost> hosts;
  for (const HostView& view : membership_->hosts()) {
    if (except.contains(view.member.id)) continue;
    PlacementHost host;
    host.id = view.member.id;
    host.name = view.member.name;
    host.drain = view.member.drain;
    if (view.live) {
      host.live = true;
      host.capacity = view.live->capacity;
      host.used = view.live->used;
      host.qemu = view.live->qemu;
      host.accelerator = view.live->accelerator;
    }
    if (host.id == config_.host) {
      host.used = used_here();
    }
    hosts.push_back(std::move(host));
  }
  PlacementDemand demand;
  demand.count = count;
  demand.minimum = 1;
  demand.memory_bytes = config.memory_bytes;
  demand.cpus = config.cpus;
  demand.qemu = qemu_;
  if (config.accelerator == Accelerator::kvm) demand.accelerator = "kvm";
  auto policy = policy_of(placing);
  SNOW_ASSIGN(const auto placed, snow::place(policy, demand, config_.host, hosts));
  std::vector<Share> shares;
  for (const Placement& placement : placed) shares.push_back({placement.host, placement.count});
  return shares;
}

Result<void> Cluster::claim(const std::vector<std::string>& vms) {
  return ownership_->claim(vms, config_.host);
}

void Cluster::disclaim(std::vector<std::string> vms) {
  {
    const std::lock_guard lock(disclaim_mutex_);
    to_disclaim_.insert(vms.begin(), vms.end());
  }
  disclaim_wake_.notify_all();
}

void Cluster::disclaim_loop() {
  std::unique_lock lock(disclaim_mutex_);
  while (!stopping_) {
    disclaim_wake_.wait(lock, [&] { return stopping_ || !to_disclaim_.empty(); });
    if (stopping_) return;
    const std::vector<std::string> vms(to_disclaim_.begin(), to_disclaim_.end());
    lock.unlock();
    const auto released = ownership_->release(vms, config_.host);
    lock.lock();
    if (released) {
      for (const std::string& vm : vms) to_disclaim_.erase(vm);
    } else {
      disclaim_wake_.wait_for(lock, kDisclaimPause, [&] { return stopping_; });
    }
  }
}

Result<void> Cluster::give_up(const std::vector<std::string>& vms) {
  for (const std::string& vm : vms) {
    Result<void> given_up;
    for (size_t i = 0; i < kOwnershipRetries; ++i) {
      SNOW_ASSIGN(const auto owner, ownership_->owner(vm));
      if (!owner || owner->state == VmRecord::State::lost) break;  // it has ended
      const auto changed = ownership_->give_up(vm, owner->generation);
      given_up = changed ? Result<void>() : tl::unexpected<Error>(changed.error());
      if (given_up || given_up.error().code != Code::wrong_state) break;
    }
    SNOW_TRY(given_up);
  }
  return {};
}

Result<Cluster::Owned> Cluster::owned() {
  // A damaged record may be one of ours: to leave it out would end a VM.
  SNOW_ASSIGN(const auto records, ownership_->all());
  Owned owned;
  std::set<std::string> members = {config_.host};
  for (const HostView& view : membership_->hosts()) members.insert(view.member.id);
  for (const VmRecord& record : records) {
    if (!members.contains(record.host)) owned.removed_hosts.insert(record.host);
    if (record.host != config_.host) continue;
    (record.state == VmRecord::State::owned ? owned.ours : owned.given_up).insert(record.id);
  }
  return owned;
}

Result<void> Cluster::forget_given_up(const std::set<std::string>& vms) {
  return ownership_->forget_lost({vms.begin(), vms.end()});
}

nlohmann::json Cluster::about() const {
  return {{"name", config_.name},
          {"host", config_.host},
          {"host_name", config_.host_name},
          {"address", config_.address},
          {"etcd", config_.etcd},
          {"lease_left_ms", membership_->lease_left_ns() / 1'000'000},
          {"trouble", membership_->trouble()}};
}

Resources Cluster::used_here() const {
  const auto usage = context_.admission->usage();
  return {usage.memory_bytes, usage.vcpus, usage.vms};
}

void Cluster::update_used() {
  membership_->update_used(used_here());
  keep_addresses();
}

}  // namespace snow
