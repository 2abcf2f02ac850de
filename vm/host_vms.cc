// VMs: run, list, pause, stop, kill, remove, and what goes on in them.
#include <signal.h>

#include <algorithm>

#include "base/file.h"
#include "base/log.h"
#include "base/names.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

constexpr uint64_t kDefaultMemory = 256u << 20;

tl::unexpected<Error> ended_error(const Vm& vm) {
  return fail(Code::wrong_state, "VM '{}': has ended ({}); `snow rm {}` removes it", vm.name,
              vm.exit.how, vm.name);
}

}  // namespace

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
  if (auto put = context_.store->put("vm", vm.id, record); !put) {
    log_error("VM {}: {}", vm.name, put.error().message);
  }
}

std::string HostImpl::console_path(const Vm& vm) const {
  return context_.settings.run_dir + "/vms/" + vm.id + "/console.log";
}

nlohmann::json HostImpl::describe(const VmPtr& vm) {
  const std::lock_guard lock(mutex_);
  return vm_to_json(*vm);
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

Result<MachineConfig> HostImpl::config_of(const RunRequest& request, const StoredImage& image) {
  MachineConfig config;
  config.has_disk = image.has_disk;
  config.has_kernel = image.has_kernel || !request.kernel.empty();
  config.has_initrd = config.has_kernel && (image.has_initrd || !request.initrd.empty());
  config.append = request.append.value_or(image.append);
  config.memory_bytes = request.memory_bytes != 0 ? request.memory_bytes
                        : image.memory_bytes != 0 ? image.memory_bytes
                                                  : kDefaultMemory;
  config.cpus = request.cpus != 0 ? request.cpus : std::max(image.cpus, 1u);
  config.network = request.network == "user" ? Network::user : Network::none;
  config.machine = config.has_kernel ? MachineType::microvm : MachineType::q35;
  if (request.machine == "q35") config.machine = MachineType::q35;
  if (request.machine == "microvm") config.machine = MachineType::microvm;
  config.accelerator = accelerator_.accelerator;
  if (request.accelerator == "kvm") config.accelerator = Accelerator::kvm;
  if (request.accelerator == "tcg") config.accelerator = Accelerator::tcg;
  if (config.machine == MachineType::microvm && !config.has_kernel) {
    return fail(Code::invalid, "machine microvm: it needs a kernel; give --kernel, or use q35");
  }
  if (!config.has_disk && !config.has_kernel) {
    return fail(Code::invalid, "image '{}': neither a disk nor a kernel to boot", image.name);
  }
  if (!request.initrd.empty() && !config.has_kernel) {
    return fail(Code::invalid, "--initrd without a kernel: give --kernel too");
  }
  SNOW_TRY(check(config));
  return config;
}

Result<std::shared_ptr<LazyFile>> HostImpl::image_disk(const StoredImage& image) {
  const std::lock_guard lock(mutex_);
  if (auto open = image_disks_[image.name].lock()) return open;
  SNOW_ASSIGN(auto content, Image::of_file(image.disk_path, image.size_bytes, false));
  SNOW_ASSIGN(auto file, LazyFile::show(context_, std::move(content)));
  SNOW_TRY(context_.store->put("image_disk", image.name,
                               {{"number", file->number()}, {"size", file->size()}}));
  image_disks_[image.name] = file;
  return file;
}

Result<nlohmann::json> HostImpl::run(const RunRequest& request) {
  if (!request.from.empty()) return run_snapshot(request);
  return run_image(request);
}

Result<nlohmann::json> HostImpl::run_image(const RunRequest& request) {
  if (request.count != 1) {
    return fail(Code::invalid, "count {}: only `--from SNAPSHOT` starts several", request.count);
  }
  SNOW_ASSIGN(const StoredImage image, context_.images->find(request.image));
  SNOW_ASSIGN(const MachineConfig config, config_of(request, image));
  SNOW_ASSIGN(auto room, context_.admission->reserve(
                             {.memory_bytes = config.memory_bytes, .cpus = config.cpus}));
  Ground ground;
  if (config.has_disk) {
    SNOW_ASSIGN(ground.disk, image_disk(image));
  }
  ground.boot = BootFiles::at(image.kernel_path, image.initrd_path);
  if (!request.kernel.empty() || !request.initrd.empty()) {
    SNOW_ASSIGN(ground.boot,
                BootFiles::copy_of(context_, request.kernel, request.initrd, *ground.boot));
  }
  auto vm = std::make_shared<Vm>();
  const std::lock_guard operation(vm->operation);
  {
    const std::lock_guard lock(mutex_);
    SNOW_ASSIGN(vm->name, free_name(request.name));
    vm->id = random_hex(6);
    vm->config = config;
    vm->image = image.name;
    vm->uuid = random_uuid();
    vm->mac = config.network == Network::user ? context_.macs.take() : "";
    vm->created = utc_now();
    vm->environment = request.environment;
    vm->room = std::move(room);
    vms_[vm->id] = vm;
    boot_files_[ground.boot->folder()] = ground.boot;
  }
  context_.events.add("starting", vm->id, {{"name", vm->name}, {"image", vm->image}});
  const int64_t since = monotonic_ns();
  const auto started = [&]() -> Result<void> {
    const Launch launch{Launch::Kind::boot, vm->name, vm->uuid, vm->mac};
    SNOW_ASSIGN(auto process, QemuProcess::start(context_, config, launch, ground));
    note_process(process);
    {
      const std::lock_guard lock(mutex_);
      vm->process = process;
    }
    save(*vm);
    attach(vm);
    SNOW_TRY(connect(vm));
    return process->go_on();
  }();
  if (!started) {
    end_vm(vm, VmState::crashed, {"crashed", 0, started.error().message});
    {
      const std::lock_guard lock(mutex_);
      vms_.erase(vm->id);
    }
    (void)context_.store->remove("vm", vm->id);
    remove_all(context_.settings.run_dir + "/vms/" + vm->id);
    return within("VM '" + vm->name + "'", started.error());
  }
  {
    const std::lock_guard lock(mutex_);
    vm->steps = {{"start", static_cast<double>(monotonic_ns() - since) / 1e6}};
  }
  set_state(vm, VmState::running);
  if (request.wait_for_agent) wait_for_agent(vm);
  return nlohmann::json::array({describe(vm)});
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
        if (name != "GUEST_PANICKED") return;
        workers_->post([this, weak, pid] {
          const auto panicked = weak.lock();
          if (!panicked) return;
          const std::lock_guard operation(panicked->operation);
          {
            const std::lock_guard lock(mutex_);
            if (!panicked->process || panicked->process->pid() != pid) return;
          }
          end_vm(panicked, VmState::crashed, {"crashed", 0, "the guest's kernel panicked"});
        });
      });
}

Result<void> HostImpl::connect(const VmPtr& vm) {
  std::shared_ptr<QemuProcess> process;
  {
    const std::lock_guard lock(mutex_);
    process = vm->process;
  }
  SNOW_TRY(process->connect_link(link_callbacks(vm)));
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
  for (const VmPtr& vm : sorted) list.push_back(vm_to_json(*vm));
  return list;
}

Result<nlohmann::json> HostImpl::inspect(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find(name));
  nlohmann::json json;
  std::shared_ptr<QemuProcess> process;
  std::shared_ptr<Frozen> over;
  {
    const std::lock_guard lock(mutex_);
    json = vm_to_json(*vm);
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

Result<nlohmann::json> HostImpl::pause(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  const std::lock_guard operation(vm->operation);
  if (vm->ended_already()) return ended_error(*vm);
  if (vm->state == VmState::paused) return describe(vm);
  if (vm->state != VmState::running) {
    return fail(Code::wrong_state, "VM '{}': it is {}, not running", vm->name,
                state_name(vm->state));
  }
  SNOW_TRY(vm->process->stop());
  set_state(vm, VmState::paused);
  return describe(vm);
}

Result<nlohmann::json> HostImpl::resume(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  const std::lock_guard operation(vm->operation);
  if (vm->ended_already()) return ended_error(*vm);
  if (vm->state == VmState::running) return describe(vm);
  if (vm->state != VmState::paused) {
    return fail(Code::wrong_state, "VM '{}': it is {}, not paused", vm->name,
                state_name(vm->state));
  }
  SNOW_TRY(vm->process->go_on());
  set_state(vm, VmState::running);
  return describe(vm);
}

Result<nlohmann::json> HostImpl::stop(const std::string& name, unsigned timeout_ms) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  {
    const std::lock_guard operation(vm->operation);
    if (vm->ended_already()) return ended_error(*vm);
    if (vm->state == VmState::paused) SNOW_TRY(vm->process->go_on());
    const bool agent = vm->agent;
    set_state(vm, VmState::stopping);
    if (agent) {
      ExecRequest request;
      request.argv = {"/bin/sh", "-c",
                      "if [ -d /run/systemd/system ]; then exec systemctl poweroff; fi; "
                      "sync; exec poweroff -f"};
      // Destroying the stream would kill the command: it is left to run until the guest is gone.
      if (auto stream = vm->process->link()->exec(request)) {
        workers_->post([stream = std::shared_ptr<GuestStream>(std::move(*stream)), timeout_ms] {
          const int64_t deadline = monotonic_ns() + int64_t{timeout_ms} * 1'000'000;
          while (monotonic_ns() < deadline) {
            const auto chunk = stream->read(500);
            if (chunk && chunk->end) break;
          }
        });
      }
    } else {
      (void)vm->process->qmp().execute("system_powerdown");
    }
  }
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                      [&] { return vm->ended_already() || stopping_; });
    if (vm->ended_already()) return vm_to_json(*vm);
  }
  return kill(name);
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
  context_.events.add("removed", vm->id, {{"name", vm->name}});
  return {};
}

Result<GuestLink*> HostImpl::agent_link(const VmPtr& vm) {
  if (vm->ended_already()) return ended_error(*vm);
  if (vm->state == VmState::paused) {
    return fail(Code::wrong_state, "VM '{}': it is paused; `snow resume {}` first", vm->name,
                vm->name);
  }
  if (!vm->agent || vm->process->link() == nullptr) {
    return fail(Code::no_agent,
                "VM '{}': its agent has not answered; it is still booting, or its image has none "
                "(docs/guest.md)",
                vm->name);
  }
  return vm->process->link();
}

Result<std::unique_ptr<GuestStream>> HostImpl::exec(const std::string& name,
                                                    const ExecRequest& request) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  const std::lock_guard operation(vm->operation);
  SNOW_ASSIGN(GuestLink * link, agent_link(vm));
  ExecRequest with_environment = request;
  with_environment.environment.insert(vm->environment.begin(), vm->environment.end());
  return link->exec(with_environment);
}

Result<std::unique_ptr<GuestStream>> HostImpl::read_file(const std::string& name,
                                                         const std::string& path) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  const std::lock_guard operation(vm->operation);
  SNOW_ASSIGN(GuestLink * link, agent_link(vm));
  return link->read_file(path);
}

Result<std::unique_ptr<GuestStream>> HostImpl::write_file(const std::string& name,
                                                          const std::string& path, unsigned mode) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  const std::lock_guard operation(vm->operation);
  SNOW_ASSIGN(GuestLink * link, agent_link(vm));
  return link->write_file(path, mode);
}

Result<std::string> HostImpl::console_log(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find(name));
  if (auto log = context_.consoles->log(vm->id)) return log;
  return ConsoleHub::read_log(console_path(*vm));
}

Result<std::unique_ptr<Host::ConsoleSession>> HostImpl::console(const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  return context_.consoles->open(vm->id);
}

Result<nlohmann::json> HostImpl::events(uint64_t after, int timeout_ms) {
  return context_.events.wait(after, timeout_ms);
}

}  // namespace snow
