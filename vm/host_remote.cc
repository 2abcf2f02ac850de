// What other hosts of the cluster ask of this one: room for clones, to bring them up, to end them;
// and what they tell: how clones of our tickets ended, which images they need no more.
//
// Every call comes from a member of the cluster. It may name only what is its own (reservations
// that it asked for, clones of its tickets); calls may come twice and in any order.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

using peer::Message;

constexpr size_t kKernelPiece = size_t{8} << 20;
constexpr uint64_t kMaxKernelBytes = uint64_t{1} << 30;
constexpr int kKernelTimeoutMs = 20'000;

std::string text_of(const nlohmann::json& json, const char* key) {
  return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : "";
}

std::map<std::string, std::string> texts_of(const nlohmann::json& json, const char* key) {
  std::map<std::string, std::string> texts;
  if (!json.contains(key) || !json[key].is_object()) return texts;
  for (const auto& [name, value] : json[key].items()) {
    if (value.is_string()) texts[name] = value.get<std::string>();
  }
  return texts;
}

bool is_hex(const std::string& text, size_t digits) {
  return text.size() == digits && text.find_first_not_of("0123456789abcdef") == text.npos;
}

// Of a file's bytes from `offset` on at most kKernelPiece. Not the whole file: at a first fork all
// hosts ask for all pieces at the same moment.
Result<std::vector<std::byte>> read_piece(const std::string& path, uint64_t offset) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(Code::not_found, "{}: cannot open", path);
  std::vector<std::byte> bytes(kKernelPiece);
  size_t size = 0;
  while (size < bytes.size()) {
    const ssize_t got = ::pread(fd.get(), bytes.data() + size, bytes.size() - size,
                                static_cast<off_t>(offset + size));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(Code::host_failed, "{}: read failed", path);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  bytes.resize(size);
  return bytes;
}

}  // namespace

void HostImpl::serve_others(Cluster& cluster) {
  const auto add = [&](const char* method,
                       Result<Message> (HostImpl::*serve)(const std::string&, const Message&)) {
    cluster.calls().add(method, [this, serve](const std::string& from, const Message& message) {
      return (this->*serve)(from, message);
    });
  };
  cluster.calls().add("token", [&cluster](const std::string&, const Message& message) {
    auto token = cluster.make_token(message.json.at("seconds"));
    return token ? Result<Message>(Message{*token, {}}) : tl::unexpected<Error>(token.error());
  });
  add("reserve", &HostImpl::serve_reserve);
  add("give_back", &HostImpl::serve_give_back);
  add("thaw", &HostImpl::serve_thaw);
  add("kill", &HostImpl::serve_kill);
  add("forget", &HostImpl::serve_forget);
  add("kernel", &HostImpl::serve_kernel);
  add("ended", &HostImpl::serve_ended);
  add("removed", &HostImpl::serve_removed);
  add("release", &HostImpl::serve_release);
}

// A kernel or initrd by its content; fetched from `from` if this host does not have it yet.
Result<std::string> HostImpl::kernel_file(const std::string& from, const std::string& hash) {
  if (hash.empty()) return std::string();
  if (!is_hex(hash, 64)) return fail(Code::invalid, "'{}': not the hash of a kernel", hash);
  const std::string path = context_.kernel_dir() + "/" + hash;
  const std::lock_guard one_at_a_time(kernels_mutex_);
  if (::access(path.c_str(), R_OK) == 0) return path;
  SNOW_ASSIGN(const auto cluster, need_cluster());
  std::string content;
  for (;;) {
    SNOW_ASSIGN(const Message piece,
                cluster->call(from, "kernel", {{{"hash", hash}, {"offset", content.size()}}, {}},
                              kKernelTimeoutMs));
    content.append(reinterpret_cast<const char*>(piece.bytes.data()), piece.bytes.size());
    if (piece.bytes.size() < kKernelPiece) break;
    if (content.size() > kMaxKernelBytes) return fail(Code::corrupt, "kernel {}: too large", hash);
  }
  if (sha256_hex(content) != hash) {
    return fail(Code::corrupt, "kernel {}: host {} sent another file", hash, from);
  }
  SNOW_TRY(snow::write_file(path, content, 0644));
  return path;
}

Result<Message> HostImpl::serve_kernel(const std::string&, const Message& message) {
  const std::string hash = text_of(message.json, "hash");
  const auto offset = message.json.at("offset").get<uint64_t>();
  std::string path;
  {
    const std::lock_guard lock(kernels_mutex_);
    const auto it = kernel_paths_.find(hash);
    if (it != kernel_paths_.end()) path = it->second;
  }
  if (path.empty()) return fail(Code::not_found, "kernel {}: not here", hash.substr(0, 64));
  Message answer;
  SNOW_ASSIGN(answer.bytes, read_piece(path, offset));
  return answer;
}

Result<Message> HostImpl::serve_reserve(const std::string& from, const Message& message) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  SNOW_TRY(cluster->may_start());
  const auto& json = message.json;
  auto given = std::make_shared<GivenRoom>();
  SNOW_ASSIGN(given->config, machine_config_from_json(json.at("config")));
  const auto disk_size = json.at("disk_size").get<uint64_t>();
  const unsigned count = json.at("count");
  given->from = from;
  given->ticket = text_of(json, "ticket");
  given->deadline_ns =
      monotonic_ns() + int64_t{std::min(json.at("seconds").get<unsigned>(), 3600u)} * 1'000'000'000;
  if (cluster->qemu() != text_of(json, "qemu")) {
    return fail(
        Code::host_failed,
        "host {}: its QEMU is '{}', that of host {} is '{}': a machine state cannot go from "
        "one to the other",
        cluster->config().host_name, cluster->qemu(), from, text_of(json, "qemu"));
  }
  if (given->config.accelerator == Accelerator::kvm &&
      accelerator_.accelerator != Accelerator::kvm) {
    return fail(Code::host_failed, "host {}: no KVM: {}", cluster->config().host_name,
                accelerator_.reason);
  }
  auto& reservation = given->reservation;
  SNOW_ASSIGN(reservation.room,
              context_.admission->reserve({.memory_bytes = given->config.memory_bytes,
                                           .cpus = given->config.cpus,
                                           .count = count,
                                           .minimum = 1,
                                           .fork = true}));
  SNOW_ASSIGN(const std::string kernel, kernel_file(from, text_of(json, "kernel")));
  SNOW_ASSIGN(const std::string initrd, kernel_file(from, text_of(json, "initrd")));
  given->boot = BootFiles::at(kernel, initrd);
  SNOW_ASSIGN(reservation.memory, LazyFile::reserve(context_, given->config.memory_bytes));
  if (disk_size != 0) {
    SNOW_ASSIGN(reservation.disk, LazyFile::reserve(context_, disk_size));
    SNOW_TRY(context_.overlays->prepare(disk_size));
  }
  SNOW_ASSIGN(reservation.shells,
              start_shells(given->config, {reservation.memory, reservation.disk, given->boot},
                           reservation.room.count(), text_of(json, "name"), ""));
  nlohmann::json ids = nlohmann::json::array();
  for (unsigned i = 0; i < reservation.room.count(); ++i) {
    given->vms.push_back(random_hex(6));
    ids.push_back(given->vms.back());
  }
  const std::string id = "r" + random_hex(6);
  {
    const std::lock_guard lock(mutex_);
    given_rooms_[id] = given;  // before the claim: what is claimed must be known here
  }
  if (auto claimed = cluster->claim(given->vms); !claimed) {
    const std::lock_guard lock(mutex_);
    given_rooms_.erase(id);
    return tl::unexpected<Error>(claimed.error());
  }
  return Message{{{"reservation", id}, {"vms", ids}}, {}};
}

// The ids are nobody's any more; whoever waits for these clones is told.
void HostImpl::take_back(const std::shared_ptr<GivenRoom>& given) {
  for (const std::string& vm : given->vms) owe_ended(given->from, given->ticket, vm, "lost", 0, "");
  if (const auto cluster = context_.cluster()) cluster->disclaim(given->vms);
}

Result<Message> HostImpl::serve_give_back(const std::string& from, const Message& message) {
  std::shared_ptr<GivenRoom> given;
  {
    const std::lock_guard lock(mutex_);
    const auto it = given_rooms_.find(text_of(message.json, "reservation"));
    if (it == given_rooms_.end() || it->second->from != from || it->second->used) return Message{};
    given = it->second;
    given_rooms_.erase(it);
  }
  if (const auto cluster = context_.cluster()) cluster->disclaim(given->vms);
  return Message{};
}

HostImpl::VmPtr HostImpl::clone_for(const std::string& from, const nlohmann::json& json,
                                    const MachineConfig& config) {
  auto vm = std::make_shared<Vm>();
  vm->id = json.at("id");
  vm->name = json.at("name");
  vm->config = config;
  vm->image = text_of(json, "image");
  vm->parent = json.at("parent");
  vm->ticket = json.at("ticket");
  vm->home = from;
  vm->index = json.at("index");
  vm->count = json.at("count");
  vm->call = json.at("call");
  vm->generation = json.at("generation");
  vm->uuid = random_uuid();
  vm->mac = config.network == Network::user ? context_.macs.take() : "";
  vm->created = utc_now();
  vm->environment = texts_of(json, "environment");
  vm->parameters = texts_of(json, "parameters");
  return vm;
}

Result<std::shared_ptr<Frozen>> HostImpl::thaw_ground(Cluster& cluster, GivenRoom& given,
                                                      const Message& message) {
  Frozen::Remote remote;
  remote.config = given.config;
  remote.state = message.bytes;
  remote.boot = given.boot;
  const auto open = [&](const char* key) -> Result<std::shared_ptr<Layer>> {
    SNOW_ASSIGN(const auto descriptor, exchange::descriptor_from_json(message.json.at(key)));
    return cluster.images().open(descriptor);
  };
  SNOW_ASSIGN(remote.memory_layer, open("memory"));
  if (given.reservation.disk) {
    SNOW_ASSIGN(remote.disk_layer, open("disk"));
  }
  const auto feed = [&](const std::shared_ptr<LazyFile>& file, const std::string& path) {
    const auto layer = cluster.images().find(path);
    if (!layer) return;
    layer->on_pages([this, weak = std::weak_ptr<LazyFile>(file), number = file->number()](
                        uint64_t offset, std::span<const std::byte> bytes) {
      const std::shared_lock lock(feed_mutex_);
      if (!feeding_ || weak.expired() || bytes.size() % exchange::kPageBytes != 0) return;
      (void)context_.lazyfs->store(number, offset, bytes);
    });
  };
  const std::string memory_path = remote.memory_layer->path();
  SNOW_ASSIGN(auto frozen, Frozen::remote(context_, std::move(remote), given.reservation.memory,
                                          given.reservation.disk));
  feed(given.reservation.memory, memory_path);
  return frozen;
}

Result<Message> HostImpl::serve_thaw(const std::string& from, const Message& message) {
  SNOW_ASSIGN(const auto cluster, need_cluster());
  const int64_t start = monotonic_ns();
  const auto& json = message.json;
  const std::string reservation = text_of(json, "reservation");
  std::shared_ptr<GivenRoom> given;
  {
    const std::lock_guard lock(mutex_);
    const auto it = given_rooms_.find(reservation);
    if (it != given_rooms_.end() && it->second->from == from && !it->second->used) {
      given = it->second;
      given->used = true;
    }
  }
  const auto refuse_images = [&] {
    for (const char* key : {"memory", "disk"}) {
      if (!json.contains(key) || json[key].is_null()) continue;
      if (auto descriptor = exchange::descriptor_from_json(json[key])) {
        cluster->images().refuse(*descriptor);
      }
    }
  };
  if (!given) {
    refuse_images();
    return fail(Code::not_found, "host {}: the room that was reserved was given back already",
                cluster->config().host_name);
  }
  const auto brought = [&]() -> Result<Message> {
    SNOW_TRY(cluster->may_start());
    SNOW_ASSIGN(const auto frozen, thaw_ground(*cluster, *given, message));
    std::vector<VmPtr> clones;
    for (const auto& one : json.at("clones")) {
      auto clone = clone_for(from, one, given->config);
      if (std::find(given->vms.begin(), given->vms.end(), clone->id) == given->vms.end()) {
        return fail(Code::denied, "VM {}: not an id that was reserved", clone->id);
      }
      clones.push_back(std::move(clone));
    }
    if (clones.size() > given->vms.size()) return fail(Code::usage, "more clones than reserved");
    {
      const std::lock_guard lock(mutex_);
      frozen_[frozen->id()] = frozen;
      for (const VmPtr& clone : clones) {
        if (!free_name(clone->name)) clone->name = "vm-" + clone->id;
        clone->room = given->reservation.room.split();
        vms_[clone->id] = clone;
      }
      given_rooms_.erase(reservation);
    }
    for (const VmPtr& clone : clones) {
      save(*clone);
      context_.events.add("starting", clone->id,
                          {{"name", clone->name}, {"parent", clone->parent}});
    }
    Steps steps;
    bring_up(clones, std::move(given->reservation.shells), frozen, json.at("had_agent"), steps,
             start, json.at("wait"));
    Message answer;
    answer.json = {{"clones", nlohmann::json::array()}, {"steps", steps_to_json(steps)}};
    for (const VmPtr& clone : clones) answer.json["clones"].push_back(describe(clone));
    return answer;
  }();
  if (!brought) {
    given->reservation.shells.clear();
    {
      const std::lock_guard lock(mutex_);
      given_rooms_.erase(reservation);
    }
    take_back(given);
    refuse_images();
  }
  return brought;
}

// Clones of the caller's tickets, ended at once.
Result<Message> HostImpl::serve_kill(const std::string& from, const Message& message) {
  std::vector<VmPtr> clones;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& id : message.json.at("vms")) {
      const auto it = vms_.find(id.get<std::string>());
      if (it == vms_.end() || it->second->home != from || it->second->ended_already()) continue;
      clones.push_back(it->second);
    }
  }
  end_killed(clones);
  return Message{{{"count", clones.size()}}, {}};
}

// Clones of a ticket that is spent. One that still runs was given up while this host was away.
Result<Message> HostImpl::serve_forget(const std::string& from, const Message& message) {
  for (const auto& id : message.json.at("vms")) {
    VmPtr vm;
    {
      const std::lock_guard lock(mutex_);
      const auto it = vms_.find(id.get<std::string>());
      if (it != vms_.end() && it->second->home == from) vm = it->second;
    }
    if (!vm) continue;
    end_given_up(vm);
    (void)remove(vm->id, false);
  }
  return Message{};
}

// How a clone of one of our tickets ended, with its result.
Result<Message> HostImpl::serve_ended(const std::string& from, const Message& message) {
  const auto& json = message.json;
  const std::string vm = json.at("vm");
  const int status = json.at("status");
  const auto find_running = [&](Ticket& ticket) {
    return std::find_if(ticket.clones.begin(), ticket.clones.end(), [&](const CloneEnd& clone) {
      return clone.vm == vm && clone.host == from && clone.how == "running";
    });
  };
  TicketPtr ticket;
  unsigned index = 0;
  bool fits = false;
  {
    const std::lock_guard lock(mutex_);
    const auto it = tickets_.find(text_of(json, "ticket"));
    if (it == tickets_.end()) return Message{};
    ticket = it->second;
    const auto clone = find_running(*ticket);
    if (clone == ticket->clones.end()) return Message{};  // told before
    index = clone->index;
    fits = ticket->result_bytes() + message.bytes.size() <= kTicketResultBytes;
  }
  if (!fits) {
    log_warn("ticket {}: the results exceed {} bytes together; that of VM {} is dropped",
             ticket->id, kTicketResultBytes, vm);
  } else if (!message.bytes.empty()) {
    SNOW_TRY(snow::write_file(
        result_path(ticket->id, index),
        {reinterpret_cast<const char*>(message.bytes.data()), message.bytes.size()}, 0600));
  }
  std::vector<Ticket::Waiter> waiters;
  {
    const std::lock_guard lock(mutex_);
    const auto clone = find_running(*ticket);
    if (clone == ticket->clones.end()) return Message{};
    clone->how = text_of(json, "how");
    clone->status = status;
    clone->result_bytes = fits ? message.bytes.size() : 0;
    if (ticket->all_ended()) waiters.swap(ticket->waiters);
  }
  save(*ticket);
  for (const auto& waiter : waiters) waiter.wake();
  return Message{};
}

Result<Message> HostImpl::serve_removed(const std::string& from, const Message& message) {
  const std::lock_guard lock(mutex_);
  const auto it = tickets_.find(text_of(message.json, "ticket"));
  if (it == tickets_.end()) return Message{};
  for (CloneEnd& clone : it->second->clones) {
    if (clone.vm == text_of(message.json, "vm") && clone.host == from) clone.removed = true;
  }
  return Message{};
}

Result<Message> HostImpl::serve_release(const std::string& from, const Message& message) {
  drop_holder(text_of(message.json, "image"), from);
  return Message{};
}

}  // namespace snow
