// What this host asks of the others for its own forks: room, the clones' start, their end; and what
// it keeps for them: frozen machines that other hosts still fetch from.
#include <openssl/evp.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/file.h"
#include "base/log.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

using peer::Message;

constexpr int kReserveTimeoutMs = 20'000;
constexpr int kKillTimeoutMs = 10'000;
constexpr int kAnswerMs = 5'000;  // beyond what the guest's agent may take
constexpr uint64_t kMaxKernelBytes = uint64_t{1} << 30;
constexpr int kRounds = 3;  // of asking for room, while hosts give less than was thought

std::function<void()> withdrawal(std::weak_ptr<Cluster> cluster,
                                 std::vector<exchange::ImageId> ids) {
  return [cluster = std::move(cluster), ids = std::move(ids)] {
    const auto alive = cluster.lock();
    if (!alive) return;
    for (const auto& id : ids) alive->exchange().withdraw(id);
  };
}

}  // namespace

std::string sha256_hex(std::string_view content) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  ::EVP_Digest(content.data(), content.size(), digest, &size, ::EVP_sha256(), nullptr);
  std::string text;
  for (unsigned i = 0; i < size; ++i) text += fmt::format("{:02x}", digest[i]);
  return text;
}

Result<std::shared_ptr<Cluster>> HostImpl::need_cluster() const {
  if (auto cluster = context_.cluster()) return cluster;
  return fail(
      Code::wrong_state,
      "this host is in no cluster; `snow cluster init` makes one, `snow cluster join` joins "
      "one");
}

// The hash by which other hosts may fetch a kernel or initrd.
Result<std::string> HostImpl::kernel_hash(const std::string& path) {
  if (path.empty()) return std::string();
  struct stat status {};
  if (::stat(path.c_str(), &status) < 0) return fail_errno(Code::host_failed, "{}", path);
  const std::string key = fmt::format("{} {} {}.{}", path, status.st_size, status.st_mtim.tv_sec,
                                      status.st_mtim.tv_nsec);
  const std::lock_guard lock(kernels_mutex_);
  if (const auto it = kernel_hashes_.find(key); it != kernel_hashes_.end()) return it->second;
  SNOW_ASSIGN(const std::string content, snow::read_file(path, kMaxKernelBytes));
  const std::string hash = sha256_hex(content);
  kernel_hashes_[key] = hash;
  kernel_paths_[hash] = path;
  return hash;
}

Result<std::unique_ptr<RemotePart>> HostImpl::reserve_on(const std::string& host,
                                                         const RoomWanted& wanted, unsigned count) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  const nlohmann::json question = {{"config", to_json(wanted.config)},
                                   {"disk_size", wanted.disk_size},
                                   {"count", count},
                                   {"name", wanted.name},
                                   {"ticket", wanted.ticket},
                                   {"seconds", context_.settings.ticket_seconds + 30},
                                   {"qemu", cluster->qemu()},
                                   {"kernel", wanted.kernel},
                                   {"initrd", wanted.initrd}};
  SNOW_ASSIGN(const Message answer,
              cluster->call(host, "reserve", {question, {}}, kReserveTimeoutMs));
  auto part = std::make_unique<RemotePart>();
  part->host = host;
  part->id = answer.json.at("reservation").get<std::string>();
  for (const auto& vm : answer.json.at("vms")) part->vms.push_back(vm.get<std::string>());
  part->give_back = [this, host, id = part->id] {
    if (context_.leaving) return;  // they have a deadline
    owe(host, "give_back", {{"reservation", id}});
  };
  return part;
}

void HostImpl::reserve_elsewhere(Reservation& reservation, const RoomWanted& wanted,
                                 const std::vector<Share>& shares, std::string& why) {
  std::mutex mutex;
  for_each_parallel(shares.size(), 16, [&](size_t i) {
    auto part = [&]() -> Result<std::unique_ptr<RemotePart>> {
      try {
        return reserve_on(shares[i].host, wanted, shares[i].count);
      } catch (const nlohmann::json::exception& error) {
        return fail(Code::corrupt, "host {}: its answer is malformed: {}", shares[i].host,
                    error.what());
      }
    }();
    const std::lock_guard lock(mutex);
    if (part) {
      reservation.remote.push_back(std::move(*part));
    } else {
      why += (why.empty() ? "" : "; ") + part.error().message;
    }
  });
}

// Room for `count` clones, here and on other hosts. A host that has less than the directory made
// believe is made up for by others, if they can.
Result<void> HostImpl::take_room(Reservation& reservation, const VmPtr& vm,
                                 const MachineConfig& config, const Ground& ground, unsigned count,
                                 unsigned minimum, const Placing& placing,
                                 const std::string& ticket) {
  if (count == 0) return {};
  const auto reserve_here = [&](unsigned share, unsigned least) -> Result<void> {
    SNOW_ASSIGN(reservation.room, context_.admission->reserve({.memory_bytes = config.memory_bytes,
                                                               .cpus = config.cpus,
                                                               .count = share,
                                                               .minimum = least,
                                                               .fork = true}));
    return {};
  };
  const bool here = placing.hosts.empty() &&
                    (placing.policy == "local" || (placing.policy.empty() && !context_.cluster()));
  if (here) return reserve_here(count, minimum);
  SNOW_ASSIGN(const auto cluster, need_cluster());
  const unsigned least = minimum == 0 ? count : minimum;
  RoomWanted wanted{config, ground.disk ? ground.disk->size() : 0, vm->name, ticket, "", ""};
  std::set<std::string> asked;
  std::string why;
  for (int round = 0; round < kRounds && reservation.granted() < count; ++round) {
    const unsigned missing = count - reservation.granted();
    auto shares = cluster->place(config, missing, placing, asked);
    if (!shares) {
      if (why.empty()) why = shares.error().message;  // otherwise: all were asked
      break;
    }
    for (const Share& share : *shares) {
      asked.insert(share.host);
      if (share.host != cluster->self()) continue;
      if (auto room = reserve_here(share.count, 1); !room) {
        why += (why.empty() ? "" : "; ") + room.error().message;
      }
    }
    std::erase_if(*shares, [&](const Share& share) { return share.host == cluster->self(); });
    if (!shares->empty() && wanted.kernel.empty()) {
      SNOW_ASSIGN(wanted.kernel, kernel_hash(ground.boot->kernel()));
      SNOW_ASSIGN(wanted.initrd, kernel_hash(ground.boot->initrd()));
    }
    reserve_elsewhere(reservation, wanted, *shares, why);
  }
  if (reservation.granted() < least) {
    return fail(Code::no_room, "{} clones: the cluster has room for {}{}{}", count,
                reservation.granted(), why.empty() ? "" : ": ", why);
  }
  if (!why.empty()) log_warn("room for clones of '{}': {}", vm->name, why);
  return {};
}

// Offers a frozen machine's images to other hosts; once, however many ask.
Result<nlohmann::json> HostImpl::offer(const std::shared_ptr<Frozen>& frozen) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  auto& exchange = cluster->exchange();
  const std::lock_guard one_at_a_time(offers_mutex_);
  if (frozen->offered().memory.empty()) {
    Frozen::Offered offered;
    const auto& ground = frozen->ground();
    const auto memory = exchange.offer(ground.memory->image(), offer_of(ground.memory->image()));
    offered.memory = exchange::to_text(memory.id);
    std::vector<exchange::ImageId> ids = {memory.id};
    if (ground.disk) {
      const auto disk = exchange.offer(ground.disk->image(), offer_of(ground.disk->image()));
      offered.disk = exchange::to_text(disk.id);
      ids.push_back(disk.id);
    }
    offered.withdraw = withdrawal(cluster, std::move(ids));
    SNOW_TRY(frozen->note_offered(std::move(offered)));
  }
  nlohmann::json json = {{"memory", nullptr}, {"disk", nullptr}};
  const auto describe = [&](const char* key, const std::string& text) -> Result<void> {
    if (text.empty()) return {};
    SNOW_ASSIGN(const auto id, exchange::image_id_from(text));
    SNOW_ASSIGN(const auto descriptor, exchange.describe(id));
    json[key] = exchange::to_json(descriptor);
    return {};
  };
  SNOW_TRY(describe("memory", frozen->offered().memory));
  SNOW_TRY(describe("disk", frozen->offered().disk));
  return json;
}

exchange::Offer HostImpl::offer_of(const std::shared_ptr<Image>& image) {
  exchange::Offer offer;
  offer.multicast = context_.settings.multicast;
  offer.data_ranges = [image] { return image->data_ranges(); };
  return offer;
}

// What an earlier daemon had offered is offered again, for the hosts that still fetch it.
void HostImpl::restore_offers(Cluster& cluster) {
  const auto holders = context_.store->list("holder");
  if (!holders) return;
  for (const auto& [key, json] : *holders) {
    const auto it = restored_.find(json.value("frozen", ""));
    if (it == restored_.end()) {
      (void)context_.store->remove("holder", key);
      continue;
    }
    const std::lock_guard lock(mutex_);
    holders_[key] = it->second;
  }
  std::set<std::shared_ptr<Frozen>> machines;
  for (const auto& [key, frozen] : holders_) machines.insert(frozen);
  for (const auto& frozen : machines) {
    auto offered = frozen->offered();
    std::vector<exchange::ImageId> ids;
    const auto again = [&](const std::string& text, const std::shared_ptr<LazyFile>& file) {
      const auto id = exchange::image_id_from(text);
      if (!id || !file) return;
      auto offer = offer_of(file->image());
      offer.id = *id;
      cluster.exchange().offer(file->image(), std::move(offer));
      ids.push_back(*id);
    };
    again(offered.memory, frozen->ground().memory);
    again(offered.disk, frozen->ground().disk);
    offered.withdraw = withdrawal(cluster.weak_from_this(), std::move(ids));
    (void)frozen->note_offered(std::move(offered));
  }
}

void HostImpl::add_holder(const std::string& image, const std::string& host,
                          const std::shared_ptr<Frozen>& frozen) {
  if (image.empty()) return;
  const std::string key = image + "." + host;
  if (auto put = context_.store->put("holder", key, {{"frozen", frozen->id()}, {"host", host}});
      !put) {
    log_error("image {}: {}", image, put.error().message);
  }
  const std::lock_guard lock(mutex_);
  holders_[key] = frozen;
}

void HostImpl::drop_holder(const std::string& image, const std::string& host) {
  std::shared_ptr<Frozen> last;
  {
    const std::lock_guard lock(mutex_);
    const auto it = holders_.find(image + "." + host);
    if (it == holders_.end()) return;
    last = std::move(it->second);
    holders_.erase(it);
  }
  (void)context_.store->remove("holder", image + "." + host);
}

std::vector<HostImpl::RemoteThaw> HostImpl::plan_elsewhere(
    Vm& parent, Reservation& reservation, unsigned count, const std::string& ticket,
    const std::map<std::string, std::string>& parameters, uint32_t call) {
  std::vector<RemoteThaw> plans;
  unsigned index = count + 1;  // they come after the clones here
  for (const auto& part : reservation.remote) index -= static_cast<unsigned>(part->vms.size());
  for (auto& part : reservation.remote) {
    RemoteThaw plan;
    plan.host = part->host;
    plan.reservation = part->id;
    for (const std::string& id : part->vms) {
      std::string name = parent.name + "." + std::to_string(++parent.children);
      if (name.size() > 60) name = "vm-" + id;
      plan.clones.push_back({{"id", id},
                             {"name", name},
                             {"index", index++},
                             {"count", count},
                             {"ticket", ticket},
                             {"call", call},
                             {"parent", parent.id},
                             {"generation", parent.generation + 1},
                             {"image", parent.image},
                             {"environment", parent.environment},
                             {"parameters", parameters}});
    }
    part->give_back = nullptr;  // it is used now
    plans.push_back(std::move(plan));
  }
  return plans;
}

Result<void> HostImpl::thaw_on(RemoteThaw& plan, const std::shared_ptr<Frozen>& frozen,
                               bool had_agent, bool wait) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  SNOW_ASSIGN(const nlohmann::json images, offer(frozen));
  add_holder(frozen->offered().memory, plan.host, frozen);
  add_holder(frozen->offered().disk, plan.host, frozen);
  const Message question{{{"reservation", plan.reservation},
                          {"memory", images.at("memory")},
                          {"disk", images.at("disk")},
                          {"clones", plan.clones},
                          {"had_agent", had_agent},
                          {"wait", wait}},
                         frozen->state()};
  auto answer = cluster->call(plan.host, "thaw", question,
                              static_cast<int>(context_.settings.agent_ready_ms) + kAnswerMs);
  if (!answer) return tl::unexpected<Error>(answer.error());
  plan.described = answer->json.at("clones");
  plan.steps = answer->json.at("steps");
  return {};
}

unsigned HostImpl::bring_up_elsewhere(std::vector<RemoteThaw>& plans,
                                      const std::shared_ptr<Frozen>& frozen, bool had_agent,
                                      bool wait, Steps& steps, int64_t since_ns,
                                      const std::string& ticket_id) {
  std::mutex mutex;
  unsigned up = 0;
  double answered = 0;
  for_each_parallel(plans.size(), plans.size(), [&](size_t i) {
    RemoteThaw& plan = plans[i];
    auto thawed = [&]() -> Result<void> {
      try {
        return thaw_on(plan, frozen, had_agent, wait);
      } catch (const nlohmann::json::exception& error) {
        return fail(Code::corrupt, "host {}: its answer is malformed: {}", plan.host, error.what());
      }
    }();
    if (!thawed) {
      log_error("clones on host {}: {}", plan.host, thawed.error().message);
      give_up(plan, ticket_id, thawed.error().message);
      return;
    }
    const std::lock_guard lock(mutex);
    answered = std::max(answered, static_cast<double>(monotonic_ns() - since_ns) / 1e6);
    for (const auto& clone : plan.described) {
      const std::string state = clone.value("state", "");
      if (state == "running" || state == "starting") ++up;
    }
  });
  if (!plans.empty()) steps.emplace_back("other_hosts", answered);
  return up;
}

// No answer: they may run or not. They are ended where they are, and count as lost here.
void HostImpl::give_up(const RemoteThaw& plan, const std::string& ticket_id,
                       const std::string& why) {
  nlohmann::json vms = nlohmann::json::array();
  for (const auto& clone : plan.clones) vms.push_back(clone.at("id"));
  owe(plan.host, "give_back", {{"reservation", plan.reservation}});
  owe(plan.host, "kill", {{"vms", vms}});
  std::vector<std::string> ids;
  for (const auto& vm : vms) ids.push_back(vm);
  mark_lost(ticket_id, ids);
  context_.events.add("lost", ids.empty() ? "" : ids[0], {{"host", plan.host}, {"why", why}});
}

void HostImpl::mark_lost(const std::string& ticket_id, const std::vector<std::string>& vms) {
  TicketPtr ticket;
  std::vector<Ticket::Waiter> waiters;
  {
    const std::lock_guard lock(mutex_);
    const auto it = tickets_.find(ticket_id);
    if (it == tickets_.end()) return;
    ticket = it->second;
    for (CloneEnd& clone : ticket->clones) {
      const bool named = std::find(vms.begin(), vms.end(), clone.vm) != vms.end();
      if (named && !clone.host.empty() && clone.how == "running") clone.how = "lost";
    }
    if (ticket->all_ended()) waiters.swap(ticket->waiters);
  }
  save(*ticket);
  for (const auto& waiter : waiters) waiter.wake();
}

// Clones on hosts whose lease has been gone for a whole lease length are given up: their owner in
// the directory is nobody from then on, and their host ends them when it is back.
void HostImpl::give_up_on_gone_hosts() {
  const auto cluster = context_.cluster();
  if (!cluster) return;
  std::map<std::string, std::vector<std::string>> gone;  // VMs by ticket
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, ticket] : tickets_) {
      for (const CloneEnd& clone : ticket->clones) {
        if (clone.host.empty() || clone.how != "running") continue;
        if (cluster->gone_for_good(clone.host)) gone[id].push_back(clone.vm);
      }
    }
  }
  for (const auto& [ticket, vms] : gone) {
    if (auto given_up = cluster->give_up(vms); !given_up) {
      log_warn("ticket {}: {}", ticket, given_up.error().message);
      continue;
    }
    log_warn("ticket {}: the host of {} clones is gone; they count as lost", ticket, vms.size());
    mark_lost(ticket, vms);
  }
}

unsigned HostImpl::kill_elsewhere(const TicketPtr& ticket) {
  std::map<std::string, nlohmann::json> vms;  // by host
  {
    const std::lock_guard lock(mutex_);
    for (const CloneEnd& clone : ticket->clones) {
      if (!clone.host.empty() && clone.how == "running") vms[clone.host].push_back(clone.vm);
    }
  }
  const auto cluster = context_.cluster();
  std::vector<std::pair<std::string, nlohmann::json>> list(vms.begin(), vms.end());
  std::atomic<unsigned> ended = 0;
  for_each_parallel(list.size(), 16, [&](size_t i) {
    const auto& [host, ids] = list[i];
    if (cluster) {
      const auto answer = cluster->call(host, "kill", {{{"vms", ids}}, {}}, kKillTimeoutMs);
      if (answer) {
        ended += answer->json.value("count", 0u);
        return;
      }
    }
    owe(host, "kill", {{"vms", ids}});
    ended += static_cast<unsigned>(ids.size());
  });
  return ended;
}

void HostImpl::owe(const std::string& host, const std::string& method,
                   const nlohmann::json& content, const std::string& file) {
  if (auto added = context_.outbox->add({host, method, content, file}); !added) {
    log_error("message '{}' to host {}: {}", method, host, added.error().message);
  }
}

void HostImpl::owe_ended(const std::string& host, const std::string& ticket, const std::string& vm,
                         const std::string& how, int status, const std::string& file) {
  owe(host, "ended", {{"ticket", ticket}, {"vm", vm}, {"how", how}, {"status", status}}, file);
}

}  // namespace snow
