// Thaw: one clone after the other from a frozen machine to "its agent has answered".
#include <signal.h>

#include <algorithm>
#include <semaphore>

#include "base/file.h"
#include "base/log.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

constexpr size_t kParallelLoads = 4;
constexpr size_t kMaxNameBytes = 60;  // a deep clone's name starts anew
constexpr int kDeathTimeoutMs = 2'000;

std::string hostname_of(std::string name) {
  std::replace(name.begin(), name.end(), '.', '-');
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

// Clones run only when all are loaded: guests that run already would take the CPUs from QEMUs that
// still load. One that hangs holds the others up for kLoadTogether at most. Thread-safe.
class Gate {
 public:
  explicit Gate(size_t count) : missing_(count) {}
  void arrive() {
    const std::lock_guard lock(mutex_);
    if (missing_ > 0 && --missing_ == 0) open_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    open_.wait_for(lock, kLoadTogether, [&] { return missing_ == 0; });
  }

 private:
  static constexpr auto kLoadTogether = std::chrono::seconds(1);
  std::mutex mutex_;
  std::condition_variable open_;
  size_t missing_;
};

const std::vector<std::string> kUndoneWithoutAgent = {
    "random numbers: the kernel's pool was not reseeded (no agent)",
    "clock: not stepped (no agent)",
    "identity: hostname, machine-id and MAC address are the parent's (no agent)",
    "hooks: /etc/snow/fork.d was not run (no agent)"};

// What the agent says that it could not do.
std::vector<std::string> failures_in(const ReadyReport& report) {
  std::vector<std::string> undone;
  for (const char* step : {"reseeded", "clock", "identity", "hooks"}) {
    const auto it = report.fields.find(step);
    if (it == report.fields.end()) continue;
    if (it->second != "ok" && it->second != "none") undone.push_back(it->first + ": " + it->second);
  }
  return undone;
}

}  // namespace

HostImpl::VmPtr HostImpl::new_clone(const Vm& parent, const Frozen& frozen, unsigned index,
                                    unsigned count, const std::string& ticket,
                                    const std::map<std::string, std::string>& parameters) {
  auto vm = std::make_shared<Vm>();
  vm->id = random_hex(6);
  vm->config = frozen.config();
  vm->image = parent.image;
  vm->snapshot = parent.snapshot;
  vm->parent = parent.id;
  vm->ticket = ticket;
  vm->index = index;
  vm->count = count;
  vm->generation = parent.generation + 1;
  vm->uuid = random_uuid();
  vm->mac = vm->config.network == Network::user ? context_.macs.take() : "";
  vm->created = utc_now();
  vm->environment = parent.environment;
  vm->parameters = parameters;
  return vm;
}

std::vector<HostImpl::VmPtr> HostImpl::new_clones(
    Vm& parent, const Frozen& frozen, Reservation& reservation, unsigned count,
    const std::string& ticket, const std::map<std::string, std::string>& parameters,
    uint32_t call) {
  std::vector<VmPtr> clones;
  const unsigned here = reservation.room.count();  // the rest runs on other hosts
  for (unsigned i = 1; i <= here; ++i) {
    auto clone = new_clone(parent, frozen, i, count, ticket, parameters);
    do {
      clone->name = parent.name + "." + std::to_string(++parent.children);
      if (clone->name.size() > kMaxNameBytes) clone->name = "vm-" + random_hex(4);
    } while (!free_name(clone->name));
    clone->call = call;
    clone->room = reservation.room.split();
    vms_[clone->id] = clone;
    clones.push_back(std::move(clone));
  }
  return clones;
}

void HostImpl::list_clones(Ticket& ticket, const std::vector<VmPtr>& clones,
                           const std::vector<RemoteThaw>& elsewhere) {
  for (const VmPtr& clone : clones) ticket.clones.push_back({clone->index, clone->id});
  for (const RemoteThaw& thaw : elsewhere) {
    for (const auto& clone : thaw.clones) {
      ticket.clones.push_back({clone.at("index"), clone.at("id"), thaw.host});
    }
  }
}

Result<std::shared_ptr<QemuProcess>> HostImpl::start_shell(const MachineConfig& config,
                                                           const Ground& ground,
                                                           const std::string& name,
                                                           const std::string& mac) {
  const Launch launch{Launch::Kind::thaw, name, random_uuid(), mac};
  SNOW_ASSIGN(auto shell, QemuProcess::start(context_, config, launch, ground));
  note_process(shell);
  return shell;
}

Identity HostImpl::identity_of(const Vm& vm, const std::optional<ParentOf>& as_parent) const {
  Identity identity;
  identity.id = vm.id;
  identity.name = vm.name;
  identity.ticket = vm.ticket;
  identity.index = vm.index;
  identity.count = vm.count;
  identity.call = vm.call;
  identity.parent = vm.parent;
  identity.generation = vm.generation;
  identity.image = vm.image;
  identity.uuid = vm.uuid;
  identity.mac = vm.mac;
  identity.parameters = vm.parameters;
  identity.environment = vm.environment;
  if (vm.index > 0 || vm.generation == 0) identity.hostname = hostname_of(vm.name);
  identity.new_machine_id = vm.index > 0;
  if (as_parent) {
    identity.ticket = as_parent->ticket;
    identity.count = as_parent->count;
    identity.call = as_parent->call;
    identity.index = 0;
    identity.hostname.clear();
    identity.mac.clear();
    identity.new_machine_id = false;
  }
  return identity;
}

Result<void> HostImpl::thaw_once(const VmPtr& vm, const std::shared_ptr<QemuProcess>& shell,
                                 const std::shared_ptr<Frozen>& frozen,
                                 const std::function<void()>& loaded) {
  auto process = shell;  // what was there before goes when the mutex is free again
  auto over = frozen;
  {
    const std::lock_guard lock(mutex_);
    vm->process.swap(process);
    vm->over.swap(over);
  }
  SNOW_TRY(connect(vm, GuestLink::Start::thaw));
  SNOW_TRY(shell->load_state(frozen->state()));
  attach(vm);
  // On record before it runs: the next daemon must know it.
  save(*vm);
  loaded();
  context_.fault.at("clone_loaded", {{"clone", shell->pid()}});
  SNOW_TRY(shell->go_on());
  context_.fault.at("clone_continued", {{"clone", shell->pid()}});
  return {};
}

Result<void> HostImpl::thaw(const VmPtr& vm, std::shared_ptr<QemuProcess> shell,
                            const std::shared_ptr<Frozen>& frozen,
                            const std::function<void()>& loaded) {
  Result<void> thawed;
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (!shell || !shell->alive()) {
      SNOW_ASSIGN(shell, start_shell(frozen->config(), frozen->ground(), vm->name, vm->mac));
    }
    thawed = thaw_once(vm, shell, frozen, loaded);
    if (thawed) return {};
    log_warn("VM {}: {}; trying once more in a new QEMU", vm->name, thawed.error().message);
    shell.reset();
    std::shared_ptr<QemuProcess> dead;
    const std::lock_guard lock(mutex_);
    dead.swap(vm->process);
  }
  return thawed;
}

Result<void> HostImpl::announce(const VmPtr& vm, bool had_agent,
                                const std::optional<ParentOf>& as_parent) {
  std::shared_ptr<QemuProcess> process;
  Identity identity;
  {
    const std::lock_guard lock(mutex_);
    process = vm->process;
    identity = identity_of(*vm, as_parent);
  }
  if (!process) return fail(Code::guest_failed, "VM '{}': has ended meanwhile", vm->name);
  if (!had_agent) {
    {
      const std::lock_guard lock(mutex_);
      vm->undone = kUndoneWithoutAgent;
    }
    set_state(vm, VmState::running);
    return {};
  }
  SNOW_ASSIGN(
      const ReadyReport report,
      process->link()->resume(identity, static_cast<int>(context_.settings.agent_ready_ms)));
  {
    const std::lock_guard lock(mutex_);
    vm->agent = true;
    vm->undone = failures_in(report);
    for (const auto& [key, value] : report.fields) {
      if (key.ends_with("_us")) {
        vm->steps.emplace_back("agent_" + key.substr(0, key.size() - 3),
                               std::strtod(value.c_str(), nullptr) / 1e3);
      }
    }
  }
  set_state(vm, VmState::running);
  return {};
}

void HostImpl::clone_lost(const VmPtr& vm, const Error& error) {
  log_error("VM {}: does not come up: {}", vm->name, error.message);
  end_vm(vm, VmState::crashed, {"lost", 0, error.message});
}

unsigned HostImpl::bring_up(const std::vector<VmPtr>& clones,
                            std::vector<std::shared_ptr<QemuProcess>> shells,
                            const std::shared_ptr<Frozen>& frozen, bool had_agent, Steps& steps,
                            int64_t since_ns, bool wait) {
  const auto elapsed = [&] { return static_cast<double>(monotonic_ns() - since_ns) / 1e6; };
  std::counting_semaphore<> loads(kParallelLoads);
  Gate all_loaded(clones.size());
  std::mutex figures;
  double all_running = 0;
  double first_ready = 0;
  double all_ready = 0;
  std::atomic<unsigned> up = 0;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < clones.size(); ++i) {
    auto shell = i < shells.size() ? std::move(shells[i]) : nullptr;
    clones[i]->had_agent = had_agent;
    threads.emplace_back([&, vm = clones[i], taken = std::move(shell)]() mutable {
      const std::lock_guard operation(vm->operation);
      Result<void> done;
      bool first = true;
      const auto loaded = [&] {
        if (std::exchange(first, false)) {
          loads.release();
          all_loaded.arrive();
        }
        all_loaded.wait();
      };
      for (int attempt = 0; attempt < 2; ++attempt) {
        if (attempt == 0) loads.acquire();
        done = thaw(vm, std::move(taken), frozen, loaded);
        if (std::exchange(first, false)) {  // it failed before
          loads.release();
          all_loaded.arrive();
        }
        if (!done) break;
        {
          const std::lock_guard lock(figures);
          all_running = std::max(all_running, elapsed());
        }
        if (!wait) {
          workers_->post([this, vm, had_agent] {
            const std::lock_guard later(vm->operation);
            if (const auto told = announce(vm, had_agent); !told) clone_lost(vm, told.error());
          });
          ++up;
          return;
        }
        done = announce(vm, had_agent);
        // Whoever has killed its QEMU meanwhile has not killed the clone.
        if (done || !vm->process || !vm->process->ends_within(kDeathTimeoutMs)) break;
      }
      if (!done) return clone_lost(vm, done.error());
      ++up;
      const std::lock_guard lock(figures);
      all_ready = std::max(all_ready, elapsed());
      if (first_ready == 0) first_ready = elapsed();
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (!clones.empty()) {
    steps.emplace_back("clones_running", all_running);
    if (wait) steps.emplace_back("first_ready", first_ready);
    if (wait) steps.emplace_back("all_ready", all_ready);
  }
  return up;
}

}  // namespace snow
