// VMs: find, list, pause, stop, kill, remove, and how each ends.
#include <signal.h>

#include <algorithm>

#include "base/file.h"
#include "base/log.h"
#include "base/names.h"
#include "vm/host_impl.h"

namespace snow {

namespace {

constexpr int kClockTimeoutMs = 5'000;  // for the agent to set the clock after a pause
constexpr int64_t kSaveAgainNs = 2'000'000'000;

}  // namespace

tl::unexpected<Error> HostImpl::ended_error(const Vm& vm) {
  return fail(Code::wrong_state, "VM '{}': has ended ({}); `snow rm {}` removes it", vm.name,
              vm.exit.how, vm.name);
}

Result<HostImpl::VmPtr> HostImpl::find(const std::string& name) {
  const std::lock_guard lock(mutex_);
  if (const auto it = vms_.find(name); it != vms_.end()) return it->second;
  VmPtr found;
  for (const auto& [id, vm] : vms_) {
    if (vm->name == name) return vm;
  }
  if (name.size() >= 4) {
    for (auto it = vms_.lower_bound(name); it != vms_.end() && it->first.starts_with(name); ++it) {
      if (found) {
        return fail(Code::not_found, "VM '{}': more than one id begins so; type more of it", name);
      }
      found = it->second;
    }
  }
  if (!found) return fail(Code::not_found, "VM '{}': no such VM; `snow ps -a` lists them", name);
  return found;
}

Result<HostImpl::VmPtr> HostImpl::find_live(const std::string& name) {
  SNOW_ASSIGN(VmPtr vm, find(name));
  const std::lock_guard lock(mutex_);
  if (vm->ended_already()) return ended_error(*vm);
  return vm;
}

Result<std::string> HostImpl::free_name(const std::string& wanted) {
  const auto taken = [&](const std::string& name) {
    return std::any_of(vms_.begin(), vms_.end(),
                       [&](const auto& entry) { return entry.second->name == name; }) ||
           vms_.contains(name);
  };
  if (wanted.empty()) {
    for (;;) {
      std::string name = "vm-" + random_hex(3);
      if (!taken(name)) return name;
    }
  }
  SNOW_TRY(check_name("VM", wanted));
  if (taken(wanted)) {
    return fail(Code::exists, "VM '{}': the name is taken; choose another, or `snow rm {}` first",
                wanted, wanted);
  }
  return wanted;
}

void HostImpl::save(const Vm& vm) {
  nlohmann::json record;
  {
    const std::lock_guard lock(mutex_);
    if (!vms_.contains(vm.id)) return;  // removed meanwhile
    record = vm_to_record(vm);
  }
  const auto put = context_.store->put("vm", vm.id, record);
  const std::lock_guard lock(mutex_);
  if (put) {
    if (unsaved_vms_.erase(vm.id) != 0) log_info("VM {}: is on record now", vm.name);
  } else if (unsaved_vms_.insert(vm.id).second) {
    log_error("VM {}: {}", vm.name, put.error().message);
  }
}

void HostImpl::save_again() {
  if (monotonic_ns() < save_again_at_ns_) return;
  save_again_at_ns_ = monotonic_ns() + kSaveAgainNs;
  std::vector<VmPtr> vms;
  std::vector<TicketPtr> tickets;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(unsaved_vms_, [&](const std::string& id) { return !vms_.contains(id); });
    std::erase_if(unsaved_tickets_, [&](const std::string& id) { return !tickets_.contains(id); });
    for (const std::string& id : unsaved_vms_) vms.push_back(vms_.at(id));
    for (const std::string& id : unsaved_tickets_) tickets.push_back(tickets_.at(id));
  }
  for (const VmPtr& vm : vms) save(*vm);
  for (const TicketPtr& ticket : tickets) save(*ticket);
}

std::string HostImpl::console_path(const Vm& vm) const {
  return context_.settings.run_dir + "/vms/" + vm.id + "/console.log";
}

nlohmann::json HostImpl::describe(const VmPtr& vm) {
  const std::lock_guard lock(mutex_);
  return placed(*vm);
}

// With where it is, and which host it waits for.
nlohmann::json HostImpl::placed(const Vm& vm) {
  nlohmann::json json = vm_to_json(vm);
  json["host"] = nullptr;
  json["waiting_for"] = nullptr;
  const auto cluster = context_.cluster();
  if (!cluster) return json;
  json["host"] = cluster->config().host_name;
  if (!vm.over) return json;
  for (const auto& file : {vm.over->ground().memory, vm.over->ground().disk}) {
    if (!file || !file->image()) continue;
    for (const auto& layer : cluster->images().of(*file->image())) {
      if (layer->waiting()) json["waiting_for"] = cluster->name_of(layer->waiting_for());
    }
  }
  return json;
}

void HostImpl::set_state(const VmPtr& vm, VmState state) {
  {
    const std::lock_guard lock(mutex_);
    if (vm->ended_already()) return;
    vm->state = state;
  }
  changed_.notify_all();
  context_.events.add(state_name(state), vm->id, {{"name", vm->name}});
  save(*vm);
}

void HostImpl::wait_for_agent(const VmPtr& vm) {
  std::unique_lock lock(mutex_);
  const bool there =
      changed_.wait_for(lock, std::chrono::milliseconds(context_.settings.agent_ready_ms),
                        [&] { return vm->agent || vm->ended_already() || stopping_; });
  if (!there) {
    vm->undone = {
        fmt::format("no agent answered within {} s: exec, cp and fork from inside do not "
                    "work (docs/guest.md tells how to put it into an image)",
                    context_.settings.agent_ready_ms / 1000)};
  }
}

void HostImpl::note_process(const std::shared_ptr<QemuProcess>& process) {
  const std::lock_guard lock(mutex_);
  processes_[process->pid()] = process;
}

void HostImpl::attach(const VmPtr& vm) {
  std::shared_ptr<QemuProcess> process;
  {
    const std::lock_guard lock(mutex_);
    process = vm->process;
  }
  process->qmp().on_event(
      [this, weak = std::weak_ptr<Vm>(vm), pid = process->pid()](const nlohmann::json& event) {
        const std::string name = event.value("event", "");
        const bool reset =
            name == "RESET" && event.contains("data") && event["data"].value("guest", false);
        if (name != "GUEST_PANICKED" && !reset) return;
        workers_->post([this, weak, pid, reset] {
          const auto alive = weak.lock();
          if (!alive) return;
          if (reset) {
            guest_reset(alive, pid);
          } else {
            guest_panicked(alive, pid);
          }
        });
      });
}

void HostImpl::guest_panicked(const VmPtr& vm, pid_t pid) {
  const std::lock_guard operation(vm->operation);
  {
    const std::lock_guard lock(mutex_);
    if (!vm->process || vm->process->pid() != pid) return;
  }
  end_vm(vm, VmState::crashed, {"crashed", 0, "the guest's kernel panicked"});
}

// A machine that boots again is told who it is when its agent says hello. But what a fork from
// inside made the clone for is gone with its memory: that clone has crashed. (A kernel without a
// driver for the panic device shows a panic in this way too.)
void HostImpl::guest_reset(const VmPtr& vm, pid_t pid) {
  const std::lock_guard operation(vm->operation);
  bool inside = false;
  {
    const std::lock_guard lock(mutex_);
    if (!vm->process || vm->process->pid() != pid || vm->state != VmState::running) return;
    const auto ticket = tickets_.find(vm->ticket);
    inside = vm->index > 0 && (vm->home.empty() ? ticket != tickets_.end() && ticket->second->inside
                                                : vm->call != 0);
    vm->agent = false;
  }
  if (inside) {
    end_vm(vm, VmState::crashed,
           {"crashed", 0, "the guest reset its machine: a kernel panic or a reboot"});
    return;
  }
  context_.events.add("reset", vm->id, {{"name", vm->name}});
}

Result<void> HostImpl::connect(const VmPtr& vm, GuestLink::Start start) {
  std::shared_ptr<QemuProcess> process;
  {
    const std::lock_guard lock(mutex_);
    process = vm->process;
  }
  SNOW_TRY(process->connect_link(link_callbacks(vm), start));
  return attach_console(vm, *process);
}

Result<void> HostImpl::attach_console(const VmPtr& vm, const QemuProcess& process) {
  const std::string log = console_path(*vm);
  SNOW_TRY(make_folders(log.substr(0, log.rfind('/'))));
  return context_.consoles->attach(vm->id, process.run_path("console.sock"), log);
}

void HostImpl::end_vm(const VmPtr& vm, VmState state, VmExit exit) {
  std::shared_ptr<QemuProcess> process;
  std::shared_ptr<Frozen> over;
  Admission::Token room;
  std::deque<std::shared_ptr<GuestCall>> calls;
  std::vector<std::shared_ptr<Frozen>> checkpoints;
  {
    const std::lock_guard lock(mutex_);
    if (vm->ended_already()) return;
    vm->state = state;
    vm->exit = std::move(exit);
    vm->ended = utc_now();
    vm->agent = false;
    process = std::move(vm->process);
    vm->process.reset();
    over = std::move(vm->over);
    vm->over.reset();
    room = std::move(vm->room);
    calls.swap(vm->calls);
    if (!vm->mac.empty()) context_.macs.give_back(vm->mac);
    for (auto it = checkpoints_.begin(); it != checkpoints_.end();) {
      if (it->second.owner == vm->id) {
        checkpoints.push_back(std::move(it->second.frozen));
        it = checkpoints_.erase(it);
      } else {
        ++it;
      }
    }
  }
  if (process) process->kill();
  context_.consoles->end(vm->id);
  calls.clear();
  process.reset();
  over.reset();
  save(*vm);
  context_.events.add(state_name(vm->state), vm->id,
                      {{"name", vm->name}, {"how", vm->exit.how}, {"status", vm->exit.status}});
  clone_ended(*vm);
  if (const auto cluster = context_.cluster()) cluster->disclaim({vm->id});
  changed_.notify_all();
}

Result<nlohmann::json> HostImpl::vms(bool all) {
  const std::lock_guard lock(mutex_);
  std::vector<VmPtr> sorted;
  for (const auto& [id, vm] : vms_) {
    if (all || !vm->ended_already()) sorted.push_back(vm);
  }
  std::sort(sorted.begin(), sorted.end(), [](const VmPtr& a, const VmPtr& b) {
    return std::tie(a->created, a->index, a->id) < std::tie(b->created, b->index, b->id);
  });
  nlohmann::json list = nlohmann::json::array();
  for (const VmPtr& vm : sorted) list.push_back(placed(*vm));
  return list;
}

Result<nlohmann::json> HostImpl::inspect(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find(name));
  nlohmann::json json;
  std::shared_ptr<QemuProcess> process;
  std::shared_ptr<Frozen> over;
  {
    const std::lock_guard lock(mutex_);
    json = placed(*vm);
    process = vm->process;
    over = vm->over;
  }
  json["images"] = nlohmann::json::array();
  if (!process) return json;
  json["private_bytes"] = process->private_bytes();
  const auto add = [&](const char* kind, const std::shared_ptr<LazyFile>& file) {
    if (!file || !file->image()) return;
    nlohmann::json entry = {{"kind", kind},
                            {"size", file->size()},
                            {"data", file->image()->data_bytes()},
                            {"layers", file->image()->layer_count()}};
    if (const auto statistics = context_.lazyfs->statistics(file->number())) {
      entry["reads"] = statistics->reads;
      entry["read_bytes"] = statistics->bytes;
      entry["resident_bytes"] = statistics->resident_bytes;
      entry["waiting"] = statistics->waiting;
      entry["latency_p50_us"] = static_cast<double>(statistics->latency_p50_ns) / 1e3;
      entry["latency_p99_us"] = static_cast<double>(statistics->latency_p99_ns) / 1e3;
    }
    if (const auto cluster = context_.cluster()) {
      for (const auto& layer : cluster->images().of(*file->image())) {
        entry["remote"].push_back(layer->statistics());
      }
    }
    json["images"].push_back(entry);
  };
  add("memory", process->ground().memory);
  add("disk", process->ground().disk);
  if (over) {
    json["frozen"] = {{"id", over->id()},
                      {"state_bytes", over->state().size()},
                      {"delta_bytes", over->delta_bytes()},
                      {"settled", over->settled()}};
  }
  if (process->link() != nullptr) json["dropped_frames"] = process->link()->dropped_frames();
  return json;
}

Result<HostImpl::Live> HostImpl::live(const VmPtr& vm) {
  const std::lock_guard lock(mutex_);
  if (vm->ended_already() || !vm->process) return ended_error(*vm);
  return Live{vm->process, vm->state, vm->agent};
}

Result<nlohmann::json> HostImpl::pause(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  const std::lock_guard operation(vm->operation);
  SNOW_ASSIGN(const Live now, live(vm));
  if (now.state == VmState::paused) return describe(vm);
  if (now.state != VmState::running) {
    return fail(Code::wrong_state, "VM '{}': it is {}, not running", vm->name,
                state_name(now.state));
  }
  SNOW_TRY(now.process->stop());
  set_state(vm, VmState::paused);
  return describe(vm);
}

Result<nlohmann::json> HostImpl::resume(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  if (const auto cluster = context_.cluster()) SNOW_TRY(cluster->may_start());
  const std::lock_guard operation(vm->operation);
  SNOW_ASSIGN(const Live now, live(vm));
  if (now.state == VmState::running) return describe(vm);
  if (now.state != VmState::paused) {
    return fail(Code::wrong_state, "VM '{}': it is {}, not paused", vm->name,
                state_name(now.state));
  }
  SNOW_TRY(now.process->go_on());
  set_state(vm, VmState::running);
  if (vm->agent && vm->process->link() != nullptr) {
    Identity same;  // its clock stood still
    same.changed = false;
    if (auto back = vm->process->link()->resume(same, kClockTimeoutMs); !back) {
      log_warn("VM {}: its clock was not set after the pause: {}", vm->name, back.error().message);
    }
  }
  return describe(vm);
}

// Asks the guest to shut down: its agent runs poweroff, or ACPI's power button is pressed. The
// command's stream must stay open until the guest is gone: closing it would end the command.
void HostImpl::ask_to_shut_down(const Live& now, unsigned timeout_ms) {
  if (!now.agent) {
    (void)now.process->qmp().execute("system_powerdown");
    return;
  }
  ExecRequest request;
  request.argv = {"/bin/sh", "-c",
                  "if [ -d /run/systemd/system ]; then exec systemctl poweroff; fi; "
                  "sync; exec poweroff -f"};
  auto stream = now.process->link()->exec(request);
  if (!stream) return;
  workers_->post([this, open = std::shared_ptr<GuestStream>(std::move(*stream)), timeout_ms] {
    const int64_t deadline = monotonic_ns() + int64_t{timeout_ms} * 1'000'000;
    while (monotonic_ns() < deadline && !stopping_) {
      const auto chunk = open->read(500);
      if (chunk && chunk->end) break;
    }
  });
}

Result<nlohmann::json> HostImpl::stop(const std::string& name, unsigned timeout_ms) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  {
    const std::lock_guard operation(vm->operation);
    SNOW_ASSIGN(const Live now, live(vm));
    if (now.state == VmState::paused) SNOW_TRY(now.process->go_on());
    set_state(vm, VmState::stopping);
    ask_to_shut_down(now, timeout_ms);
  }
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                      [&] { return vm->ended_already() || stopping_; });
    if (vm->ended_already()) return placed(*vm);
  }
  auto killed = kill(name);
  // It may have ended by itself just now.
  return killed || killed.error().code != Code::wrong_state ? std::move(killed) : describe(vm);
}

// At once, so that no operation that waits for this guest has to be waited for.
void HostImpl::kill_now(const VmPtr& vm) {
  std::shared_ptr<QemuProcess> process;
  {
    const std::lock_guard lock(mutex_);
    if (!vm->ended_already()) vm->state = VmState::stopping;
    process = vm->process;
  }
  if (process) process->kill();
}

Result<nlohmann::json> HostImpl::kill(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  kill_now(vm);
  const std::lock_guard operation(vm->operation);
  end_vm(vm, VmState::exited, {"killed", SIGKILL, ""});
  return describe(vm);
}

Result<void> HostImpl::remove(const std::string& name, bool force) {
  SNOW_ASSIGN(const VmPtr vm, find(name));
  if (force) kill_now(vm);
  const std::lock_guard operation(vm->operation);
  if (!vm->ended_already()) {
    if (!force) {
      return fail(Code::wrong_state, "VM '{}': it is {}; `snow stop {}` first, or `snow rm -f {}`",
                  vm->name, state_name(vm->state), vm->name, vm->name);
    }
    end_vm(vm, VmState::exited, {"killed", SIGKILL, ""});
  }
  {
    const std::lock_guard lock(mutex_);
    vms_.erase(vm->id);
  }
  SNOW_TRY(context_.store->remove("vm", vm->id));
  context_.consoles->forget(vm->id);
  remove_all(context_.settings.run_dir + "/vms/" + vm->id);
  if (!vm->home.empty()) owe(vm->home, "removed", {{"ticket", vm->ticket}, {"vm", vm->id}});
  context_.events.add("removed", vm->id, {{"name", vm->name}});
  return {};
}

Result<nlohmann::json> HostImpl::events(uint64_t after, int timeout_ms) {
  return context_.events.wait(after, timeout_ms);
}

}  // namespace snow
