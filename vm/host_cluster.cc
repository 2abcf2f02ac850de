// The cluster as people see it: made, joined, its hosts listed, drained, removed; and what this
// host does when it comes back after it was cut off.
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>

#include "base/file.h"
#include "base/log.h"
#include "base/names.h"
#include "peer/authority.h"
#include "peer/join.h"
#include "peer/socket.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

using peer::Message;

constexpr int kDeliverTimeoutMs = 10'000;
constexpr int kJoinTimeoutMs = 20'000;
constexpr int64_t kReconcileEveryNs = 3'000'000'000;
constexpr uint64_t kCacheReserve = uint64_t{10} << 30;  // or a 20th of the disk, if that is less

std::string own_name() {
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  std::string text = name;
  text = text.substr(0, text.find('.'));
  return check_name("host", text) ? text : "host";
}

Result<std::string> whole_address(std::string text) {
  if (text.empty()) {
    return fail(Code::usage,
                "address: missing; say by which IP address other hosts reach this one");
  }
  const bool has_port = text.front() == '[' ? text.find("]:") != text.npos
                                            : std::count(text.begin(), text.end(), ':') == 1;
  if (!has_port) {
    const bool v6 = text.find(':') != text.npos && text.front() != '[';
    text = (v6 ? "[" + text + "]" : text) + ":" + std::to_string(kDefaultPeerPort);
  }
  SNOW_ASSIGN(const auto address, peer::parse_address(text));
  return peer::to_text(address);
}

// Before anybody else hears of this host: a token would be used up, a name taken in the directory.
Result<void> can_listen(const std::string& text) {
  SNOW_ASSIGN(const auto address, peer::parse_address(text));
  SNOW_TRY(peer::listen_tcp(address));
  return {};
}

}  // namespace

Result<void> HostImpl::open_cluster() {
  SNOW_ASSIGN(const auto config, read_cluster_config(context_.settings.state_dir));
  if (!config) return {};
  return start_cluster(*config);
}

// Everything but listening: the record is restored with its help.
Result<void> HostImpl::start_cluster(const ClusterConfig& config) {
  Cluster::Callbacks callbacks;
  callbacks.back = [this] { return reconcile(); };
  callbacks.api = [this](peer::Connection& connection) {
    std::function<void(peer::Connection&)> session;
    {
      const std::lock_guard lock(mutex_);
      session = api_session_;
    }
    if (session) session(connection);
  };
  callbacks.release = [this](const std::string& origin, const std::string& image) {
    owe(origin, "release", {{"image", image}});
  };
  SNOW_ASSIGN(auto cluster,
              Cluster::open(context_, config, qemu_version_,
                            std::string(accelerator_name(accelerator_.accelerator)), callbacks));
  serve_others(*cluster);
  // A fault on a page of another host fetches that page; what is near may never be needed.
  if (auto set = context_.lazyfs->set_readahead(0); !set) log_warn("{}", set.error().message);
  context_.set_cluster(std::move(cluster));
  return {};
}

// For the first time.
Result<void> HostImpl::enter_cluster(const ClusterConfig& config) {
  SNOW_TRY(start_cluster(config));
  const auto cluster = context_.cluster();
  SNOW_TRY(cluster->become_member());
  auto listening = cluster->listen();
  if (!listening) (void)cluster->remove_member(config.host);
  return listening;
}

void HostImpl::serve_api(std::function<void(peer::Connection&)> session) {
  const std::lock_guard lock(mutex_);
  api_session_ = std::move(session);
}

std::shared_ptr<Neighbours> HostImpl::neighbours() { return context_.cluster(); }

Result<void> HostImpl::deliver(const Outbox::Item& item) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  Message message{item.content, {}};
  if (!item.file.empty()) {
    const auto content = snow::read_file(item.file);
    if (content) {
      const auto* begin = reinterpret_cast<const std::byte*>(content->data());
      message.bytes.assign(begin, begin + content->size());
    } else {
      log_error("result {}: {}", item.file, content.error().message);
    }
  }
  auto answer = cluster->call(item.host, item.method, message, kDeliverTimeoutMs);
  if (!answer) return tl::unexpected<Error>(answer.error());
  return {};
}

Result<nlohmann::json> HostImpl::make_cluster(const ClusterRequest& request) {
  const std::lock_guard changing(cluster_change_mutex_);
  if (context_.cluster()) {
    return fail(Code::exists, "this host is in cluster '{}' already",
                context_.cluster()->config().name);
  }
  ClusterConfig config;
  config.name = request.name.empty() ? "snow" : request.name;
  config.host_name = request.host_name.empty() ? own_name() : request.host_name;
  SNOW_TRY(check_name("cluster", config.name));
  SNOW_TRY(check_name("host", config.host_name));
  SNOW_ASSIGN(config.address, whole_address(request.address));
  SNOW_TRY(can_listen(config.address));
  config.host = "h" + random_hex(6);
  config.cluster = random_hex(8);
  config.etcd = request.etcd;
  config.plain = request.plain;
  config.authority = config.plain ? "" : config.host;
  const std::string folder = cluster_folder(context_.settings.state_dir);
  SNOW_TRY(make_folders(folder, 0700));
  const auto made = [&]() -> Result<void> {
    if (!config.plain) {
      SNOW_TRY(peer::make_authority(folder, config.name));
      SNOW_TRY(peer::make_host_certificate(folder, config.host));
    }
    SNOW_TRY(enter_cluster(config));
    return write_cluster_config(context_.settings.state_dir, config);
  }();
  if (!made) {
    if (auto cluster = context_.cluster()) cluster->stop();
    context_.set_cluster(nullptr);
    remove_all(folder);
    return within("cluster '" + config.name + "'", made.error());
  }
  log_info("cluster {} ({}): made; this host is {} at {}", config.name, config.cluster, config.host,
           config.address);
  return context_.cluster()->hosts();
}

Result<nlohmann::json> HostImpl::make_join_token(unsigned seconds) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  return cluster->make_token(seconds);
}

Result<nlohmann::json> HostImpl::join_cluster(const JoinRequest& request) {
  const std::lock_guard changing(cluster_change_mutex_);
  if (context_.cluster()) {
    return fail(Code::exists, "this host is in cluster '{}' already",
                context_.cluster()->config().name);
  }
  ClusterConfig config;
  config.host_name = request.host_name.empty() ? own_name() : request.host_name;
  SNOW_TRY(check_name("host", config.host_name));
  SNOW_ASSIGN(config.address, whole_address(request.address));
  SNOW_TRY(can_listen(config.address));
  config.host = "h" + random_hex(6);
  const std::string folder = cluster_folder(context_.settings.state_dir);
  SNOW_TRY(make_folders(folder, 0700));
  const auto done = [&]() -> Result<void> {
    if (const auto plain = from_plain_token(request.token)) {
      config.cluster = plain->cluster;
      config.name = plain->name;
      config.etcd = plain->etcd;
      config.plain = true;
      SNOW_TRY(enter_cluster(config));
    } else {
      const nlohmann::json about = {{"name", config.host_name}, {"address", config.address}};
      SNOW_ASSIGN(const auto joined,
                  peer::join(folder, request.token, config.host, about, kJoinTimeoutMs));
      joined.cluster.at("cluster").get_to(config.cluster);
      joined.cluster.at("name").get_to(config.name);
      joined.cluster.at("etcd").get_to(config.etcd);
      config.authority = joined.authority_host;
      SNOW_TRY(start_cluster(config));  // the authority has made us a member
      auto listening = context_.cluster()->listen();
      if (!listening) (void)context_.cluster()->remove_member(config.host);
      SNOW_TRY(listening);
    }
    return write_cluster_config(context_.settings.state_dir, config);
  }();
  if (!done) {
    if (auto cluster = context_.cluster()) cluster->stop();
    context_.set_cluster(nullptr);
    remove_all(folder);
    return tl::unexpected<Error>(done.error());
  }
  log_info("cluster {}: joined; this host is {} at {}", config.name, config.host, config.address);
  auto members = context_.cluster()->hosts();
  if (members) return members;
  return fail(
      Code::unavailable,
      "cluster '{}': this host has joined as '{}', but does not reach the directory: {}; it "
      "starts no VMs until it does, and goes on by itself then (`snow doctor`)",
      config.name, config.host_name, members.error().message);
}

Result<nlohmann::json> HostImpl::hosts() {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  SNOW_ASSIGN(auto list, cluster->hosts());
  for (auto& host : list) host["owed"] = context_.outbox->waiting(host.at("id"));
  return list;
}

Result<nlohmann::json> HostImpl::host(const std::string& name) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  SNOW_ASSIGN(const std::string id, cluster->find_host(name));
  SNOW_ASSIGN(const auto list, hosts());
  for (const auto& host : list) {
    if (host.at("id") != id) continue;
    auto json = host;
    if (id == cluster->self()) json["exchange"] = cluster->exchange().statistics();
    json["keeps"] = nullptr;
    if (auto kept = cluster->kept_by(id)) json["keeps"] = *kept;
    return json;
  }
  return fail(Code::not_found, "host '{}': no such host; `snow host ls` lists them", name);
}

Result<nlohmann::json> HostImpl::drain_host(const std::string& name, bool drain) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  SNOW_ASSIGN(const std::string id, cluster->find_host(name));
  SNOW_TRY(cluster->set_drain(id, drain));
  return host(id);
}

Result<void> HostImpl::remove_host(const std::string& name, bool force) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  SNOW_ASSIGN(const std::string id, cluster->find_host(name));
  if (id == cluster->self()) {
    return fail(Code::wrong_state, "host '{}': is this one; remove it from another host", name);
  }
  const auto live = cluster->live();
  if (!force && std::find(live.begin(), live.end(), id) != live.end()) {
    return fail(Code::wrong_state,
                "host '{}': it is alive; stop its snowd first, or `snow host rm -f {}`", name,
                name);
  }
  SNOW_TRY(cluster->remove_member(id));
  forget_removed(*cluster, id);
  return {};
}

// Here or on another host: its clones are lost, and nothing is kept for it.
void HostImpl::forget_removed(Cluster& cluster, const std::string& id) {
  context_.outbox->forget(id);
  std::vector<std::pair<std::string, std::vector<std::string>>> lost;
  std::vector<std::string> images;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [ticket_id, ticket] : tickets_) {
      std::vector<std::string> vms;
      for (CloneEnd& clone : ticket->clones) {
        if (clone.host != id) continue;
        clone.removed = true;
        vms.push_back(clone.vm);
      }
      if (!vms.empty()) lost.emplace_back(ticket_id, std::move(vms));
    }
    for (const auto& [key, frozen] : holders_) {
      if (key.ends_with("." + id)) images.push_back(key.substr(0, key.find('.')));
    }
  }
  for (const auto& [ticket, vms] : lost) mark_lost(ticket, vms);
  for (const std::string& image : images) drop_holder(image, id);
  cluster.forget_member(id);
}

Result<nlohmann::json> HostImpl::detach(const std::string& name, int timeout_ms) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  std::vector<std::shared_ptr<exchange::RemoteLayer>> layers;
  if (const auto cluster = context_.cluster()) {
    std::shared_ptr<Frozen> over;
    {
      const std::lock_guard lock(mutex_);
      over = vm->over;
    }
    if (over) {
      for (const auto& file : {over->ground().memory, over->ground().disk}) {
        if (!file || !file->image()) continue;
        const auto more = cluster->images().of(*file->image());
        layers.insert(layers.end(), more.begin(), more.end());
      }
    }
  }
  for (const auto& layer : layers) {
    if (auto done = layer->detach(timeout_ms); !done) {
      return within("VM '" + vm->name + "'", done.error());
    }
  }
  return describe(vm);
}

// Nothing happens to one that has ended.
void HostImpl::end_given_up(const VmPtr& vm) {
  kill_now(vm);
  const std::lock_guard operation(vm->operation);
  if (vm->ended_already()) return;
  log_warn("VM {}: was given up while this host was away; it is ended", vm->name);
  end_vm(vm, VmState::crashed,
         {"lost", 0, "given up by its parent's host while this one was away"});
}

// After a start, a join, or a time without the directory, and now and then: what runs here and is
// owned by nobody or by somebody else must not run on.
Result<void> HostImpl::reconcile() {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  // What is here by now was claimed before; what is claimed from now on is no concern of this turn.
  std::vector<VmPtr> here;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, vm] : vms_) {
      if (!vm->ended_already()) here.push_back(vm);
    }
  }
  SNOW_ASSIGN(const auto owned, cluster->owned());
  const std::set<std::string>& ours = owned.ours;
  std::vector<VmPtr> given_up;
  std::vector<std::string> unclaimed;
  std::vector<std::string> gone;
  for (const VmPtr& vm : here) {
    if (ours.contains(vm->id)) continue;
    // A clone of another host's VM was claimed before it came; a VM of our own is claimed here.
    if (vm->home.empty()) {
      unclaimed.push_back(vm->id);
    } else {
      given_up.push_back(vm);
    }
  }
  {
    const std::lock_guard lock(mutex_);
    std::set<std::string> promised;
    for (const auto& [id, given] : given_rooms_) {
      promised.insert(given->vms.begin(), given->vms.end());
    }
    for (const std::string& id : ours) {
      const auto it = vms_.find(id);
      const bool alive = it != vms_.end() && !it->second->ended_already();
      if (!alive && !promised.contains(id)) gone.push_back(id);
    }
  }
  for (const VmPtr& vm : given_up) end_given_up(vm);
  for (const std::string& host : owned.removed_hosts) cluster->forget_records_of(host);
  if (!owned.given_up.empty()) SNOW_TRY(cluster->forget_given_up(owned.given_up));
  if (!gone.empty()) cluster->disclaim(gone);
  if (!unclaimed.empty()) return cluster->claim(unclaimed);
  return {};
}

Kept HostImpl::what_is_kept() {
  Kept kept;
  if (images_changed_.exchange(false)) {
    if (const auto images = context_.images->list()) {
      kept_images_.clear();
      for (const StoredImage& image : *images) kept_images_[image.name] = {{"bytes", image.bytes}};
    } else {
      images_changed_ = true;
    }
  }
  kept["image"] = kept_images_;
  const std::string self = context_.cluster()->self();
  const std::lock_guard lock(mutex_);
  for (const auto& [key, frozen] : holders_) {
    const size_t dot = key.find('.');
    const std::string image = key.substr(0, dot);
    const auto& file = frozen->offered_as(image);
    auto& entry = kept["frozen"][image];
    entry["of"] = file == frozen->ground().memory ? "memory" : "disk";
    entry["bytes"] = file->size();
    entry["holders"].push_back(key.substr(dot + 1));
  }
  for (const auto& [id, ticket] : tickets_) {
    std::map<std::string, unsigned> clones;
    for (const CloneEnd& clone : ticket->clones) ++clones[clone.host.empty() ? self : clone.host];
    if (ticket->reservation) {
      if (ticket->reservation->room.count() > 0) clones[self] = ticket->reservation->room.count();
      for (const auto& part : ticket->reservation->remote) clones[part->host] += part->vms.size();
    }
    kept["ticket"][id] = {{"vm", ticket->owner}, {"forked", ticket->forked}, {"clones", clones}};
  }
  return kept;
}

// What was fetched of other hosts' images is given up before it fills the disk; each page of it is
// still at its origin.
void HostImpl::make_room_in_cache(Cluster& cluster) {
  struct statvfs disk {};
  if (::statvfs(context_.cache_dir().c_str(), &disk) < 0) return;
  const uint64_t free = uint64_t{disk.f_bavail} * disk.f_frsize;
  const uint64_t wanted = std::min(uint64_t{disk.f_blocks} * disk.f_frsize / 20, kCacheReserve);
  if (free >= wanted) return;
  const uint64_t evicted = cluster.exchange().evict(wanted - free);
  if (evicted > 0)
    log_info("disk nearly full: {} MiB of other hosts' images given up", evicted >> 20);
}

// The ticker's share of the cluster's work; what may wait for the directory is a worker's.
void HostImpl::tick_cluster() {
  const auto cluster = context_.cluster();
  if (!cluster) return;
  expire_given_rooms();
  cluster->update_used();
  cluster->images().start_due_fills();
  if (monotonic_ns() < reconcile_at_ns_ || reconciling_) return;
  reconcile_at_ns_ = monotonic_ns() + kReconcileEveryNs;
  reconciling_ = true;
  workers_->post([this, cluster] {
    for (const std::string& host : cluster->removed_members()) forget_removed(*cluster, host);
    give_up_on_gone_hosts();
    make_room_in_cache(*cluster);
    if (!cluster->may_start()) {
      reconciling_ = false;
      return;
    }
    if (auto done = reconcile(); !done) log_warn("VMs of this host: {}", done.error().message);
    if (auto done = cluster->publish(what_is_kept()); !done) {
      log_warn("what this host keeps: {}", done.error().message);
    }
    reconciling_ = false;
  });
}

void HostImpl::expire_given_rooms() {
  std::vector<std::shared_ptr<GivenRoom>> late;
  {
    const std::lock_guard lock(mutex_);
    for (auto it = given_rooms_.begin(); it != given_rooms_.end();) {
      if (!it->second->used && it->second->deadline_ns < monotonic_ns()) {
        late.push_back(std::move(it->second));
        it = given_rooms_.erase(it);
      } else {
        ++it;
      }
    }
  }
  for (const auto& given : late) {
    log_info("room for host {}: not used in time, taken back", given->from);
    take_back(given);
  }
}

}  // namespace snow
