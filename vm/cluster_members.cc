// The other members, as this host knows them: where they are, which are there, drained, gone,
// removed.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"
#include "base/names.h"
#include "cluster/members.h"
#include "vm/cluster.h"
#include "vm/time_text.h"

namespace snow {

Result<void> Cluster::become_member() {
  Member member;
  member.id = config_.host;
  member.name = config_.host_name;
  member.address = config_.address;
  member.joined_ms = static_cast<uint64_t>(wall_clock_ns() / 1'000'000);
  return add_member(*directory_, member);
}

// A host with a good token becomes a member, and is told what the cluster is.
Result<nlohmann::json> Cluster::admit(const std::string& host, const nlohmann::json& about) {
  if (config_.etcd.empty()) {
    return fail(
        Code::wrong_state,
        "cluster '{}' has no etcd, so it is one of this host alone; make it anew with `snow "
        "cluster init --etcd URL`",
        config_.name);
  }
  Member member;
  member.id = host;
  member.name = about.at("name");
  member.address = about.at("address");
  member.joined_ms = static_cast<uint64_t>(wall_clock_ns() / 1'000'000);
  SNOW_TRY(check_name("host", member.name));
  SNOW_TRY(peer::parse_address(member.address));
  if (auto added = add_member(*directory_, member); !added) {
    // The same host again, whose answer was lost.
    SNOW_ASSIGN(const auto members, list_members(*directory_));
    const bool same = std::any_of(members.begin(), members.end(), [&](const Member& known) {
      return known.id == host && known.name == member.name;
    });
    if (!same) return tl::unexpected<Error>(added.error());
  }
  return nlohmann::json{
      {"cluster", config_.cluster}, {"name", config_.name}, {"etcd", config_.etcd}};
}

bool Cluster::is_member(const std::string& host) const {
  const auto hosts = membership_->hosts();
  return std::any_of(hosts.begin(), hosts.end(),
                     [&](const HostView& view) { return view.member.id == host; });
}

std::vector<std::string> Cluster::live() const {
  std::vector<std::string> ids;
  for (const HostView& view : membership_->hosts()) {
    if (view.live && view.member.id != config_.host) ids.push_back(view.member.id);
  }
  return ids;
}

std::string Cluster::name_of(const std::string& host) const {
  for (const HostView& view : membership_->hosts()) {
    if (view.member.id == host) return view.member.name;
  }
  return host;
}

bool Cluster::gone_for_good(const std::string& host) const {
  const int64_t length_ns = int64_t{context_.settings.lease_seconds} * kSecondNs;
  bool known = false;
  for (const HostView& view : membership_->hosts()) {
    if (view.member.id != host) continue;
    known = true;
    if (!view.live && view.problem.empty() && view.gone_ns > length_ns) return true;
  }
  return !known && membership_->seen_ago_ns() < length_ns;  // removed
}

Result<nlohmann::json> Cluster::hosts() {
  const auto refreshed = membership_->refresh();
  if (!refreshed && membership_->hosts().empty()) return tl::unexpected<Error>(refreshed.error());
  const auto in_json = [](const Resources& used) {
    return nlohmann::json{{"memory", used.memory_bytes}, {"vms", used.vms}, {"vcpus", used.cpus}};
  };
  nlohmann::json list = nlohmann::json::array();
  for (const HostView& view : membership_->hosts()) {
    const bool self = view.member.id == config_.host;
    nlohmann::json host = {
        {"id", view.member.id},
        {"name", view.member.name},
        {"address", view.live ? view.live->address : view.member.address},
        {"self", self},
        {"drain", view.member.drain},
        {"state", view.live ? (view.member.drain ? "drained" : "alive") : "gone"},
        {"since", nullptr},
        {"capacity", in_json({})},
        {"used", in_json({})},
        {"qemu", ""},
        {"accelerator", ""}};
    if (self && membership_->fenced()) host["state"] = "fenced";
    if (view.live) {
      host["capacity"] = in_json(view.live->capacity);
      host["used"] = in_json(view.live->used);
      host["qemu"] = view.live->qemu;
      host["accelerator"] = view.live->accelerator;
      host["since"] = rfc3339(static_cast<int64_t>(view.live->since_ms) * 1'000'000);
    }
    if (self) {
      host["used"] = in_json(used_here());
    }
    list.push_back(std::move(host));
  }
  return list;
}

Result<std::string> Cluster::find_host(const std::string& name) const {
  for (const bool again : {false, true}) {
    if (again) SNOW_TRY(membership_->refresh());  // it may have joined since we last looked
    for (const HostView& view : membership_->hosts()) {
      if (view.member.id == name || view.member.name == name) return view.member.id;
    }
  }
  return fail(Code::not_found, "host '{}': no such host; `snow host ls` lists them", name);
}

Result<void> Cluster::set_drain(const std::string& host, bool drain) {
  SNOW_TRY(snow::set_drain(*directory_, host, drain));
  return membership_->refresh();
}

Result<void> Cluster::remove_member(const std::string& host) {
  SNOW_TRY(snow::remove_member(*directory_, host));
  forget_records_of(host);
  return membership_->refresh();
}

std::vector<std::string> Cluster::removed_members() const {
  // First who was there, then who is: one that joins in between is in both or in the second.
  std::set<std::string> removed;
  {
    const std::lock_guard lock(addresses_mutex_);
    for (const auto& [host, address] : addresses_) removed.insert(host);
  }
  const auto hosts = membership_->hosts();
  // The directory has not answered yet, or a record there cannot be read: it may be a member's.
  if (hosts.empty() || !membership_->problems().empty()) return {};
  removed.erase(config_.host);
  for (const HostView& view : hosts) removed.erase(view.member.id);
  return {removed.begin(), removed.end()};
}

void Cluster::forget_member(const std::string& host) {
  exchange_->forget_host(host);
  pool_->forget(host);
  server_->forget(host);
  const std::lock_guard lock(addresses_mutex_);
  if (addresses_.erase(host) > 0) write_addresses();
}

void Cluster::forget_records_of(const std::string& host) {
  auto forgotten = ownership_->forget_host(host);
  if (forgotten) forgotten = forget_kept(*directory_, host);
  // It has joined by now, or somebody else will do it.
  if (!forgotten) log_warn("records of a removed host: {}", forgotten.error().message);
}

// Of the directory's last answer; before the first one, of the daemon before this one: VMs may
// already wait for pages of other hosts while the directory cannot be reached.
Result<peer::Address> Cluster::address_of(const std::string& host) const {
  for (const HostView& view : membership_->hosts()) {
    if (view.member.id != host) continue;
    return peer::parse_address(view.live ? view.live->address : view.member.address);
  }
  const std::lock_guard lock(addresses_mutex_);
  if (const auto it = addresses_.find(host);
      it != addresses_.end() && membership_->hosts().empty()) {
    return peer::parse_address(it->second);
  }
  return fail(Code::not_found, "host {}: not a member of the cluster", host);
}

void Cluster::keep_addresses() {
  const std::lock_guard lock(addresses_mutex_);
  auto now = addresses_;
  for (const HostView& view : membership_->hosts()) {
    now[view.member.id] = view.live ? view.live->address : view.member.address;
  }
  if (now == addresses_) return;
  addresses_ = std::move(now);
  write_addresses();
}

void Cluster::write_addresses() {
  const std::string path = cluster_folder(context_.settings.state_dir) + "/addresses.json";
  if (auto written = write_file(path, nlohmann::json(addresses_).dump(), 0600); !written) {
    log_warn("{}", written.error().message);
  }
}

}  // namespace snow
