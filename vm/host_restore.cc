// What a daemon takes over from the one before it.
//
// What the record must answer after a kill -9 at any moment: which QEMU runs each VM ("vm"), what
// the lazyfs numbers that QEMUs have mapped show ("frozen", "image_disk"), which fork was under way
// and whether its point of no return was passed ("fork"), and what is owed to whom ("ticket",
// "checkpoint"). Everything else that is found (processes, files) is an orphan and goes.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

constexpr int kAnswerMs = 10'000;
constexpr int kFirstAnswerMs = 1'000;  // of a QEMU that may answer later
constexpr auto kSilentPause = std::chrono::milliseconds(200);

}  // namespace

Result<void> HostImpl::restore_record() {
  SNOW_ASSIGN(const auto disks, context_.store->list("image_disk"));
  SNOW_ASSIGN(const auto machines, context_.store->list("frozen"));
  SNOW_ASSIGN(const auto vms, context_.store->list("vm"));
  SNOW_ASSIGN(const auto checkpoints, context_.store->list("checkpoint"));
  SNOW_ASSIGN(const auto forks, context_.store->list("fork"));
  std::map<uint64_t, std::shared_ptr<LazyFile>> image_disks;
  for (const auto& [name, json] : disks) {
    if (context_.keeper->started_now()) {
      (void)context_.store->remove("image_disk", name);
      continue;
    }
    const auto image = context_.images->find(name);
    auto content = image ? Image::of_file(image->disk_path, image->size_bytes, false)
                         : tl::unexpected<Error>(image.error());
    if (!content) {  // damaged: those that run on it fail, not everybody
      log_error("image {}: {}", name, content.error().message);
      continue;
    }
    SNOW_ASSIGN(auto file, LazyFile::restore(context_, json.at("number"), json.at("size"),
                                             std::move(*content)));
    image_disks_[name] = file;
    image_disks[file->number()] = file;
  }
  std::vector<nlohmann::json> sorted;
  for (const auto& [id, json] : machines) sorted.push_back(json);
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.at("sequence").template get<int64_t>() < b.at("sequence").template get<int64_t>();
  });
  OpenLayers layers;
  Frozen::Finders finders;
  finders.frozen = [&](const std::string& id) -> std::shared_ptr<Frozen> {
    const auto it = restored_.find(id);
    return it == restored_.end() ? nullptr : it->second;
  };
  finders.image_disk = [&](uint64_t number) -> std::shared_ptr<LazyFile> {
    const auto it = image_disks.find(number);
    return it == image_disks.end() ? nullptr : it->second;
  };
  finders.boot_files = [&](const nlohmann::json& json) { return shared_boot_files(json); };
  finders.remote_layer = [&](const std::string& path) -> Result<std::shared_ptr<Layer>> {
    SNOW_ASSIGN(const auto cluster, need_cluster());
    return cluster->images().reopen(path);
  };
  finders.layers = &layers;
  for (const auto& json : sorted) {
    const std::string id = json.at("id");
    if (context_.keeper->started_now()) {
      (void)context_.store->remove("frozen", id);
      continue;
    }
    if (!json.at("settled").get<bool>()) {
      // Frozen for a fork that is undone: its QEMU goes on, and keeps its files.
      const pid_t source = json.at("source").at("pid");
      const bool undone = std::any_of(forks.begin(), forks.end(), [&](const auto& fork) {
        return fork.second.at("old").at("pid") == source && !fork.second.contains("frozen");
      });
      if (undone) {
        (void)context_.keeper->let_go(source);
        (void)context_.store->remove("frozen", id);
        continue;
      }
    }
    auto frozen = Frozen::restore(context_, json, finders);
    if (!frozen) {
      log_error("frozen machine {}: lost: {}", id, frozen.error().message);
      (void)context_.store->remove("frozen", id);
      continue;
    }
    frozen_[id] = *frozen;
    if (!(*frozen)->snapshot().empty()) snapshots_[(*frozen)->snapshot()] = *frozen;
    if (!(*frozen)->settled()) unsettled_.push_back(*frozen);  // in the order of their making
    restored_[id] = std::move(*frozen);
  }
  for (const auto& [id, json] : checkpoints) {
    const auto it = restored_.find(json.at("frozen"));
    if (it == restored_.end()) {
      (void)context_.store->remove("checkpoint", id);
    } else {
      checkpoints_[id] = {json.at("owner"), it->second, json.at("call")};
    }
  }
  for (const auto& [id, json] : vms) {
    auto vm = vm_from_record(json);
    if (!vm) {
      log_error("VM {}: its record is damaged: {}", id, vm.error().message);
      continue;
    }
    vms_[id] = *vm;
    records_[id] = json;
    if (json.at("process").is_null()) continue;
    const uint64_t number = json.at("process").at("disk");
    if (image_disks.contains(number)) grounds_[id].disk = image_disks[number];
  }
  return {};
}

std::shared_ptr<BootFiles> HostImpl::shared_boot_files(const nlohmann::json& json) {
  const std::string folder = json.value("folder", "");
  auto& known = boot_files_[folder];
  if (auto open = known.lock(); open && !folder.empty()) return open;
  auto files = BootFiles::from_json(context_, json);
  known = files;
  return files;
}

const KeptProcess* HostImpl::Found::find(const nlohmann::json& process) const {
  if (process.is_null()) return nullptr;
  const auto it = running.find(process.at("key"));
  return it != running.end() && it->second.pid == process.at("pid") ? &it->second : nullptr;
}

void HostImpl::claim_network(const Vm& vm) {
  if (vm.config.network != Network::user) return;
  if (!vm.mac.empty()) (void)context_.macs.claim(vm.mac);
  if (auto guarded = context_.network_guard->ensure(); !guarded) {
    log_error("VM {}: {}", vm.name, guarded.error().message);
  }
}

void HostImpl::restore_vms(const Found& found) {
  const auto listed = context_.store->list("fork");
  std::map<std::string, nlohmann::json> forks;
  if (listed) forks = {listed->begin(), listed->end()};
  for (const auto& [id, vm] : vms_) {
    const std::lock_guard operation(vm->operation);
    const auto fork = forks.find(id);
    const bool done = vm->ended_already() || fork == forks.end() ||
                      finish_fork_under_way(vm, fork->second, found);
    if (done && fork == forks.end() && !vm->ended_already()) {
      restore_vm(vm, records_[id], found, false, true);
    }
    if (done && fork != forks.end()) (void)context_.store->remove("fork", id);
    forks.erase(id);
  }
  for (const auto& [id, json] : forks) (void)context_.store->remove("fork", id);
}

void HostImpl::end_lost(const VmPtr& vm, const nlohmann::json& process, const Found& found,
                        const std::string& why) {
  log_warn("VM {}: {}", vm->name, why);
  if (!process.is_null()) {
    const auto ended = found.ended.find(process.at("key"));
    if (ended != found.ended.end() && WIFEXITED(ended->second.status) &&
        WEXITSTATUS(ended->second.status) == 0) {
      end_vm(vm, VmState::exited, {"shutdown", 0, "it ended while no daemon ran"});
      return;
    }
  }
  end_vm(vm, VmState::crashed, {"lost", 0, why});
}

Result<std::string> HostImpl::reach(const VmPtr& vm, int timeout_ms) {
  SNOW_TRY(vm->process->connect_control(timeout_ms));
  SNOW_ASSIGN(const auto status, vm->process->qmp().execute("query-status", {}, timeout_ms));
  return status.value("status", "");
}

// The VMs' operations are held from before anybody can ask for one: until their QEMUs answer, all
// that is asked of them waits.
void HostImpl::start_waiting_for_silent() {
  if (silent_.empty()) return;
  std::promise<void> held;
  silent_thread_ = std::thread([this, &held] {
    std::vector<std::unique_lock<std::mutex>> operations;
    for (const VmPtr& vm : silent_) operations.emplace_back(vm->operation);
    held.set_value();
    while (!stopping_ && !silent_.empty()) {
      for (size_t i = 0; i < silent_.size() && !stopping_;) {
        const VmPtr vm = silent_[i];
        const auto status = reach(vm, kFirstAnswerMs);
        if (!status && vm->process->alive()) {
          ++i;
          continue;
        }
        if (status) {
          take_over(vm, *status, false);
        } else {
          end_vm(vm, VmState::crashed, {"lost", 0, status.error().message});
        }
        operations.erase(operations.begin() + static_cast<ptrdiff_t>(i));
        silent_.erase(silent_.begin() + static_cast<ptrdiff_t>(i));
      }
      std::this_thread::sleep_for(kSilentPause);
    }
  });
  held.get_future().wait();
}

void HostImpl::restore_vm(const VmPtr& vm, const nlohmann::json& record, const Found& found,
                          bool prepared, bool may_wait) {
  const auto& process_json = record.at("process");
  const auto running = [&]() -> Result<std::string> {
    if (process_json.is_null()) return fail(Code::guest_failed, "it was still being started");
    if (context_.keeper->started_now()) {
      return fail(Code::guest_failed, "the keeper was killed, and its QEMU with it");
    }
    if (found.find(process_json) == nullptr) {
      return fail(Code::guest_failed, "its QEMU ended while no daemon ran");
    }
    const std::string over = record.at("over");
    Ground ground = grounds_[vm->id];
    ground.boot = shared_boot_files(record.at("boot"));
    if (!over.empty()) {
      if (!restored_.contains(over)) {
        return fail(Code::corrupt, "the frozen machine {} that it runs on is lost", over);
      }
      vm->over = restored_[over];
      ground = vm->over->ground();
    }
    SNOW_ASSIGN(auto process,
                QemuProcess::adopt(context_, process_json, vm->config, ground, false));
    note_process(process);
    {
      const std::lock_guard lock(mutex_);
      vm->process = std::move(process);
    }
    return reach(vm, may_wait ? kFirstAnswerMs : kAnswerMs);
  }();
  const bool silent =
      !running && running.error().code == Code::timed_out && vm->process && vm->process->alive();
  if (!running && !(silent && may_wait)) {
    end_lost(vm, process_json, found, running.error().message);
    return;
  }
  claim_network(*vm);
  vm->room = context_.admission->admit(vm->config.memory_bytes, vm->config.cpus);
  if (silent) {
    // It may hold its own lock and wait for a page that another host has.
    log_warn("VM {}: its QEMU does not answer yet; what is asked of it waits", vm->name);
    silent_.push_back(vm);
    return;
  }
  take_over(vm, *running, prepared);
}

// `status`: its QEMU's. Operation held.
void HostImpl::take_over(const VmPtr& vm, const std::string& status, bool prepared) {
  if (status == "shutdown" || status == "internal-error" || status == "guest-panicked") {
    end_vm(vm, VmState::crashed, {"crashed", 0, "QEMU is " + status});
    return;
  }
  if (status == "inmigrate" || status == "prelaunch") {
    // A clone that had not begun to run: nobody has seen it.
    end_vm(vm, VmState::crashed, {"lost", 0, "the daemon ended before it ran"});
    return;
  }
  attach(vm);
  // A clone that was loaded but has not heard who it is goes on and is told now; others stand still
  // because someone paused them.
  const bool unannounced = vm->state == VmState::starting && vm->over;
  const auto start = unannounced || prepared ? GuestLink::Start::thaw : GuestLink::Start::boot;
  if (auto connected = connect(vm, start); !connected) {
    log_error("VM {}: {}", vm->name, connected.error().message);
  }
  {
    const std::lock_guard lock(mutex_);
    if (unannounced) {
      vm->agent = false;
    } else {
      vm->state = status == "running" ? VmState::running : VmState::paused;
    }
  }
  if (unannounced) {
    workers_->post([this, vm] {
      const std::lock_guard operation(vm->operation);
      if (vm->ended_already()) return;
      auto done = vm->process->go_on();
      if (done) done = announce(vm, vm->had_agent);
      if (!done) end_vm(vm, VmState::crashed, {"lost", 0, done.error().message});
    });
  }
  log_info("VM {}: {}, taken over", vm->name, state_name(vm->state));
  save(*vm);
}

bool HostImpl::finish_fork_under_way(const VmPtr& vm, const nlohmann::json& fork,
                                     const Found& found) {
  nlohmann::json record = records_[vm->id];
  const bool had_agent = fork.value("agent", false);
  if (context_.keeper->started_now()) {
    restore_vm(vm, record, found);
    return true;
  }
  if (!fork.contains("frozen")) {
    log_warn("VM {}: a fork was under way when the daemon ended; it is undone", vm->name);
    undone_forks_.insert(fork.value("ticket", ""));
    record["process"] = fork.at("old");
    record["over"] = fork.at("over");
    restore_vm(vm, record, found, had_agent);
    if (vm->ended_already()) return true;
    {
      const std::lock_guard lock(mutex_);
      vm->state = VmState::running;
    }
    save(*vm);
    context_.events.add("undone", vm->id, {{"name", vm->name}});
    workers_->post([this, vm, had_agent] {
      const std::lock_guard operation(vm->operation);
      if (vm->ended_already()) return;
      if (auto undone = undo_freeze(vm, vm->process, true, had_agent); !undone) {
        log_error("VM {}: cannot go on: {}", vm->name, undone.error().message);
      }
    });
    return false;
  }
  // Past the point of no return the parent is the new QEMU if that is alive; if it is gone, the
  // frozen machine is thawed once more.
  log_warn("VM {}: a fork was under way when the daemon ended; it is finished", vm->name);
  if (!restored_.contains(fork.at("frozen"))) {
    end_lost(vm, nullptr, found, "the machine that it was frozen into is lost");
    return true;
  }
  const auto frozen = restored_[fork.at("frozen")];
  if (record.at("process").is_null() || record["process"].at("key") == fork.at("old").at("key")) {
    record["process"] = fork.at("new");
  }
  record["over"] = frozen->id();
  bool runs = false;
  if (found.find(record["process"]) != nullptr) {
    auto process =
        QemuProcess::adopt(context_, record["process"], vm->config, frozen->ground(), true);
    if (process) {
      note_process(*process);
      {
        const std::lock_guard lock(mutex_);
        vm->process = *process;
        vm->over = frozen;
      }
      attach(vm);
      const auto connected = connect(vm, GuestLink::Start::thaw);
      runs = connected && (*process)->go_on();  // it may have been loaded and not continued
    }
  }
  vm->room = context_.admission->admit(vm->config.memory_bytes, vm->config.cpus);
  claim_network(*vm);
  {
    const std::lock_guard lock(mutex_);
    vm->state = VmState::running;
  }
  // lazyfs answers already, so it can be thawed here; guests are spoken to on the workers' time.
  if (!runs) {
    if (auto restored = restore_parent(vm, frozen); !restored) {
      end_lost(vm, nullptr, found, restored.error().message);
      return true;
    }
  }
  save(*vm);
  const ParentOf as_parent{fork.value("ticket", ""), fork.value("count", 0u),
                           fork.value("call", uint32_t{0})};
  workers_->post([this, vm, had_agent, as_parent] {
    const std::lock_guard operation(vm->operation);
    if (vm->ended_already()) return;
    if (auto done = announce(vm, had_agent, as_parent); !done) {
      log_error("VM {}: its agent does not answer after the fork: {}", vm->name,
                done.error().message);
    }
    (void)context_.store->remove("fork", vm->id);
  });
  return false;
}

void HostImpl::restore_tickets() {
  const auto records = context_.store->list("ticket");
  for (const auto& [id, json] : *records) {
    auto ticket = ticket_from_record(json);
    if (!ticket->forked || (ticket->clones.empty() && undone_forks_.contains(id))) {
      log_warn("ticket {}: its waiting QEMUs are given back; it cannot be used any more", id);
      context_.events.add("given_back", ticket->owner, {{"ticket", id}});
      (void)context_.store->remove("ticket", id);
      continue;
    }
    // A fork that was finished without them.
    for (unsigned i = static_cast<unsigned>(ticket->clones.size()) + 1; i <= ticket->granted; ++i) {
      CloneEnd missing;
      missing.index = i;
      missing.how = "lost";
      ticket->clones.push_back(missing);
    }
    {
      const std::lock_guard lock(mutex_);
      for (CloneEnd& clone : ticket->clones) {
        const auto it = vms_.find(clone.vm);
        if (clone.how != "running" || !clone.host.empty()) continue;
        if (it == vms_.end()) {
          clone.how = "lost";
        } else if (it->second->ended_already()) {
          clone.how = it->second->exit.how;
          clone.status = it->second->exit.status;
        }
      }
      tickets_[id] = ticket;
    }
    save(*ticket);
  }
}

void HostImpl::remove_orphans(const Found& found) {
  std::set<std::string> used;    // keys of QEMUs, ids of VMs and frozen machines, tickets
  std::set<std::string> layers;  // files
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [pid, weak] : processes_) {
      if (const auto process = weak.lock()) used.insert(process->key());
    }
    for (const auto& [id, vm] : vms_) used.insert(id);
    for (const auto& [id, ticket] : tickets_) used.insert(id);
    // A clone's result that its ticket's host has not got yet.
    for (const std::string& file : context_.outbox->files()) layers.insert(file);
    for (const auto& [folder, weak] : boot_files_) {
      if (!weak.expired()) layers.insert(folder);
    }
    for (const auto& [id, weak] : frozen_) {
      const auto frozen = weak.lock();
      if (!frozen) continue;
      layers.insert(context_.frozen_dir() + "/" + id + ".state");
      layers.insert(context_.frozen_dir() + "/" + id + ".map");
      for (const auto& [key, process] : found.running) {
        if (frozen->held_pid() == process.pid) used.insert(key);
      }
      for (const auto& file : {frozen->ground().memory, frozen->ground().disk}) {
        if (!file || !file->image()) continue;
        for (const auto& layer : file->image()->layers()) {
          const std::string path = layer->path();
          layers.insert(path);
          if (!path.starts_with(context_.cache_dir() + "/")) continue;
          layers.insert({path + ".map", path + ".json"});  // what a remote layer has beside it
        }
      }
    }
  }
  for (const auto& [key, process] : found.running) {
    if (used.contains(key)) continue;
    log_warn("QEMU {} ({}): belongs to no VM any more; ended", process.pid, key);
    (void)context_.keeper->kill(process.pid);
  }
  // Files and folders are named KEY or KEY.something, or are a layer of an image.
  for (const std::string& path : found.paths) {
    const std::string name = path.substr(path.rfind('/') + 1);
    if (used.contains(name.substr(0, name.find('.'))) || layers.contains(path)) continue;
    log_info("{}: belongs to no VM any more; removed", path);
    remove_all(path);
  }
}

}  // namespace snow
