// What a daemon takes over from the one before it.
//
// What the record must answer after a kill -9 at any moment: which QEMU runs each VM ("vm"), what
// the lazyfs numbers that QEMUs have mapped show ("frozen", "image_disk"), which fork was under way
// and whether its point of no return was passed ("fork"), and what is owed to whom ("ticket",
// "checkpoint"). Everything else that is found (processes, files) is an orphan and goes.
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "vm/host_impl.h"

namespace snow {

Result<void> HostImpl::restore_record() {
  SNOW_ASSIGN(const auto disks, context_.store->list("image_disk"));
  SNOW_ASSIGN(const auto machines, context_.store->list("frozen"));
  SNOW_ASSIGN(const auto vms, context_.store->list("vm"));
  SNOW_ASSIGN(const auto checkpoints, context_.store->list("checkpoint"));
  std::map<uint64_t, std::shared_ptr<LazyFile>> image_disks;
  for (const auto& [name, json] : disks) {
    if (context_.keeper->started_now()) {
      (void)context_.store->remove("image_disk", name);
      continue;
    }
    const auto image = context_.images->find(name);
    if (!image) {
      log_error("image {}: {}", name, image.error().message);
      continue;
    }
    SNOW_ASSIGN(auto content, Image::of_file(image->disk_path, image->size_bytes, false));
    SNOW_ASSIGN(auto file, LazyFile::restore(context_, json.at("number"), json.at("size"),
                                             std::move(content)));
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
  finders.frozen = [&](const std::string& id) { return restored_[id]; };
  finders.image_disk = [&](uint64_t number) { return image_disks[number]; };
  finders.boot_files = [&](const nlohmann::json& json) { return shared_boot_files(json); };
  finders.layers = &layers;
  for (const auto& json : sorted) {
    const std::string id = json.at("id");
    if (context_.keeper->started_now()) {
      (void)context_.store->remove("frozen", id);
      continue;
    }
    auto frozen = Frozen::restore(context_, json, finders);
    if (!frozen) {
      log_error("frozen machine {}: lost: {}", id, frozen.error().message);
      (void)context_.store->remove("frozen", id);
      continue;
    }
    frozen_[id] = *frozen;
    if (!(*frozen)->snapshot().empty()) snapshots_[(*frozen)->snapshot()] = *frozen;
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

void HostImpl::restore_vms(const std::map<pid_t, KeptProcess>& kept) {
  const auto forks = context_.store->list("fork");
  for (const auto& [id, vm] : vms_) {
    const std::lock_guard operation(vm->operation);
    if (vm->ended_already()) continue;
    const auto fork = std::find_if(forks->begin(), forks->end(),
                                   [&, wanted = id](const auto& f) { return f.first == wanted; });
    if (fork != forks->end()) {
      finish_fork_under_way(vm, fork->second, kept);
    } else {
      restore_vm(vm, records_[id], kept);
    }
  }
  for (const auto& [id, json] : *forks) (void)context_.store->remove("fork", id);
  for (const auto& [id, frozen] : restored_) {
    if (!frozen->settled()) settler_->add(frozen);
  }
  restored_.clear();
  records_.clear();
  grounds_.clear();
}

void HostImpl::claim_network(const Vm& vm) {
  if (vm.config.network != Network::user) return;
  if (!vm.mac.empty()) (void)context_.macs.claim(vm.mac);
  if (auto guarded = context_.network_guard->ensure(); !guarded) {
    log_error("VM {}: {}", vm.name, guarded.error().message);
  }
}

void HostImpl::restore_vm(const VmPtr& vm, const nlohmann::json& record,
                          const std::map<pid_t, KeptProcess>& kept) {
  const auto& process_json = record.at("process");
  const auto running = [&]() -> Result<std::string> {
    if (process_json.is_null()) return fail(Code::guest_failed, "it was still being started");
    if (!kept.contains(process_json.at("pid"))) {
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
    SNOW_ASSIGN(vm->process, QemuProcess::adopt(context_, process_json, vm->config, ground, true));
    note_process(vm->process);
    SNOW_ASSIGN(const auto status, vm->process->qmp().execute("query-status"));
    return status.value("status", "");
  }();
  if (!running) {
    log_warn("VM {}: {}", vm->name, running.error().message);
    end_vm(vm, VmState::crashed, {"lost", 0, running.error().message});
    return;
  }
  claim_network(*vm);
  vm->room = context_.admission->admit(vm->config.memory_bytes, vm->config.cpus);
  if (*running == "shutdown" || *running == "internal-error" || *running == "guest-panicked") {
    end_vm(vm, VmState::crashed, {"crashed", 0, "QEMU is " + *running});
    return;
  }
  if (*running == "inmigrate" || *running == "prelaunch") {
    // A clone that had not begun to run: nobody has seen it.
    end_vm(vm, VmState::crashed, {"lost", 0, "the daemon ended before it ran"});
    return;
  }
  attach(vm);
  // A clone that runs but has not heard who it is is told now; others stand still because someone
  // paused them.
  const bool unannounced = vm->state == VmState::starting && !vm->parent.empty();
  if (auto connected = connect(vm, unannounced ? GuestLink::Start::thaw : GuestLink::Start::boot);
      !connected) {
    log_error("VM {}: {}", vm->name, connected.error().message);
  }
  vm->state = *running == "running" ? VmState::running : VmState::paused;
  const bool had_agent = vm->agent;
  if (unannounced) {
    vm->agent = false;
    workers_->post([this, vm] {
      const std::lock_guard operation(vm->operation);
      if (auto done = announce(vm, true); !done) {
        end_vm(vm, VmState::crashed, {"lost", 0, done.error().message});
      }
    });
  } else {
    vm->agent = had_agent;
  }
  log_info("VM {}: {}, taken over", vm->name, state_name(vm->state));
  save(*vm);
}

void HostImpl::finish_fork_under_way(const VmPtr& vm, const nlohmann::json& fork,
                                     const std::map<pid_t, KeptProcess>& kept) {
  // Past the point of no return the parent is the new QEMU if that is alive; if it has not begun to
  // run, or is gone, the frozen machine is thawed once more.
  nlohmann::json record = records_[vm->id];
  const bool passed = fork.contains("frozen") && restored_.contains(fork.at("frozen"));
  const bool had_agent = fork.value("agent", false);
  if (!passed) {
    log_warn("VM {}: a fork was under way when the daemon ended; it is undone", vm->name);
    if (fork.contains("frozen")) log_error("VM {}: its frozen machine is lost", vm->name);
    // A machine that was frozen for it must not take the old QEMU's files with it.
    for (auto& [id, frozen] : restored_) {
      if (!frozen->settled() && frozen->held_pid() == fork.at("old").at("pid").get<pid_t>()) {
        frozen->abandon();
      }
    }
    restore_vm(vm, record, kept);
    if (vm->ended_already()) return;
    undo_freeze(vm, vm->process, true, had_agent);
    vm->state = VmState::running;
    save(*vm);
    return;
  }
  const auto frozen = restored_[fork.at("frozen")];
  record["process"] = fork.at("new");
  record["over"] = frozen->id();
  log_warn("VM {}: a fork was under way when the daemon ended; it is finished", vm->name);
  bool runs = false;
  if (kept.contains(fork.at("new").at("pid"))) {
    auto process = QemuProcess::adopt(context_, fork.at("new"), vm->config, frozen->ground(), true);
    if (process) {
      const auto status = (*process)->qmp().execute("query-status");
      runs = status && status->value("status", "") != "inmigrate" &&
             status->value("status", "") != "prelaunch";
      if (runs) {
        vm->process = *process;
        vm->over = frozen;
        (void)(*process)->go_on();  // it may have been loaded and not continued
        note_process(*process);
        attach(vm);
        if (auto connected = connect(vm, GuestLink::Start::thaw); !connected) {
          log_error("VM {}: {}", vm->name, connected.error().message);
        }
      }
    }
  }
  vm->room = context_.admission->admit(vm->config.memory_bytes, vm->config.cpus);
  claim_network(*vm);
  vm->state = VmState::running;
  // Thawing reads lazyfs, which answers already; guests are spoken to on the workers' time.
  workers_->post([this, vm, frozen, runs, had_agent] {
    const std::lock_guard operation(vm->operation);
    Result<void> done;
    if (!runs) {
      done = thaw(vm, nullptr, frozen);
      if (done) context_.events.add("restored", vm->id, {{"name", vm->name}});
    }
    if (done) done = announce(vm, had_agent, ParentOf{});
    if (!done) {
      log_error("VM {}: cannot be restored from its frozen machine: {}", vm->name,
                done.error().message);
      end_vm(vm, VmState::crashed, {"lost", 0, done.error().message});
    }
  });
}

void HostImpl::restore_tickets() {
  const auto records = context_.store->list("ticket");
  for (const auto& [id, json] : *records) {
    auto ticket = ticket_from_record(json);
    if (!ticket->forked) {
      log_warn("ticket {}: its waiting QEMUs are given back; it cannot be used any more", id);
      (void)context_.store->remove("ticket", id);
      continue;
    }
    {
      const std::lock_guard lock(mutex_);
      for (CloneEnd& clone : ticket->clones) {
        const auto it = vms_.find(clone.vm);
        if (clone.how != "running") continue;
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

void HostImpl::remove_orphans(const std::map<pid_t, KeptProcess>& kept) {
  std::set<std::string> used;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [pid, weak] : processes_) {
      if (const auto process = weak.lock()) used.insert(process->key());
    }
    for (const auto& [id, weak] : frozen_) {
      if (const auto frozen = weak.lock()) {
        used.insert(id);
        for (const auto& [pid, process] : kept) {
          if (frozen->held_pid() == pid) used.insert(process.id);
        }
      }
    }
  }
  for (const auto& [pid, process] : kept) {
    if (used.contains(process.id)) continue;
    log_warn("QEMU {} ({}): belongs to no VM any more; ended", pid, process.id);
    (void)context_.keeper->kill(pid);
  }
  // Files are named KEY.something or are a layer of an image.
  std::set<std::string> layers;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, weak] : frozen_) {
      const auto frozen = weak.lock();
      if (!frozen) continue;
      for (const auto& file : {frozen->ground().memory, frozen->ground().disk}) {
        if (!file || !file->image()) continue;
        for (const auto& layer : file->image()->layers()) layers.insert(layer->path());
      }
    }
  }
  for (const std::string& folder :
       {context_.ram_dir(), context_.disk_dir(), context_.frozen_dir()}) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (!entry.is_regular_file()) continue;
      const std::string name = entry.path().stem();
      if (used.contains(name) || layers.contains(entry.path())) continue;
      log_warn("{}: belongs to no VM any more; removed", entry.path().string());
      ::unlink(entry.path().c_str());
    }
  }
}

}  // namespace snow
