// Fork, step by step; docs/fork.md has the same list with what a fault at each step does.
//
//   1 reserve    waiting QEMUs (shells), the next image's files still unbound
//   2 prepare    the agent stops the user's processes and the channel
//   3 record     the fork is on record before anything stands still
//   4 stop       the parent's guest stands still; its disk is flushed      | the host's part
//   5 freeze     machine state saved, private pages found, files bound     | of the pause
//   6 move       the parent's shell loads the state and goes on            |
//   7 announce   the parent's agent, then the clones
//   8 settle     in the background: the old QEMU's memory is copied and it is let go
//
// Until 6 everything can be undone: the old QEMU goes on; if that has died after 5, the parent is
// thawed from the frozen machine. From 6 on the parent is the new QEMU, and if that dies before the
// fork is over, the parent is thawed from the frozen machine once more.
#include <signal.h>

#include <algorithm>
#include <utility>

#include "base/file.h"
#include "base/log.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

constexpr int kPrepareTimeoutMs = 15'000;  // a guest on a busy host may stand still for seconds
constexpr int kAliveTimeoutMs = 5'000;
constexpr int kDeathTimeoutMs = 2'000;
constexpr int kDyingMs = 100;  // from the end of its sockets to its own
constexpr size_t kParallelStarts = 4;
// Where there are not CPUs enough for all, the clones wait this long for the parent to be back, so
// that its pause is not theirs to lengthen.
constexpr auto kParentFirst = std::chrono::milliseconds(40);

double since(int64_t start_ns) { return static_cast<double>(monotonic_ns() - start_ns) / 1e6; }

}  // namespace

Result<std::vector<std::shared_ptr<QemuProcess>>> HostImpl::start_shells(
    const MachineConfig& config, const Ground& ground, unsigned count, const std::string& name,
    const std::string& mac) {
  std::vector<std::shared_ptr<QemuProcess>> shells(count);
  std::mutex mutex;
  Result<void> started;
  for_each_parallel(count, kParallelStarts, [&](size_t i) {
    auto shell = start_shell(config, ground, name, mac);
    const std::lock_guard lock(mutex);
    if (shell) {
      shells[i] = std::move(*shell);
    } else if (started) {
      started = tl::unexpected<Error>(shell.error());
    }
  });
  if (!started) return within("a QEMU for the fork of '" + name + "'", started.error());
  return shells;
}

Result<std::unique_ptr<Reservation>> HostImpl::make_reservation(const VmPtr& vm, unsigned count,
                                                                unsigned minimum,
                                                                const Placing& placing,
                                                                const std::string& ticket) {
  if (const auto cluster = context_.cluster()) SNOW_TRY(cluster->may_start());
  MachineConfig config;
  std::shared_ptr<QemuProcess> process;
  std::string name;
  {
    const std::lock_guard lock(mutex_);
    if (!vm->process) return fail(Code::wrong_state, "VM '{}': has ended", vm->name);
    config = vm->config;
    process = vm->process;
    name = vm->name;
  }
  auto reservation = std::make_unique<Reservation>();
  SNOW_TRY(take_room(*reservation, vm, config, process->ground(), count, minimum, placing, ticket));
  SNOW_ASSIGN(reservation->memory, LazyFile::reserve(context_, config.memory_bytes));
  if (const auto& disk = process->ground().disk) {
    SNOW_ASSIGN(reservation->disk, LazyFile::reserve(context_, disk->size()));
    SNOW_TRY(context_.overlays->prepare(disk->size()));
  }
  const Ground ground{reservation->memory, reservation->disk, process->ground().boot};
  SNOW_ASSIGN(reservation->shells,
              start_shells(config, ground, reservation->room.count() + 1, name, vm->mac));
  return reservation;
}

Result<void> HostImpl::undo_freeze(const VmPtr& vm, const std::shared_ptr<QemuProcess>& old,
                                   bool stopped, bool had_agent) {
  if (stopped) {
    if (auto console = attach_console(vm, *old); !console) {
      log_warn("VM {}: console: {}", vm->name, console.error().message);
    }
    // A QEMU that was killed while it is held keeps its sockets open: ask before telling.
    SNOW_TRY(old->qmp().execute("query-status", {}, kAliveTimeoutMs));
    SNOW_TRY(old->go_on());
  }
  if (had_agent) {
    Identity same;
    same.changed = false;
    if (auto back = old->link()->resume(same, kPrepareTimeoutMs); !back) {
      log_warn("VM {}: its agent does not answer after a fork was given up: {}", vm->name,
               back.error().message);
    }
  }
  if (auto removed = context_.store->remove("fork", vm->id); !removed) {
    log_error("VM {}: {}", vm->name, removed.error().message);
  }
  return {};
}

// The parent's old and new QEMU are both gone, but the frozen machine is there.
Result<void> HostImpl::restore_parent(const VmPtr& vm, const std::shared_ptr<Frozen>& frozen) {
  log_warn("VM {}: its QEMU died during a fork; it is restored from the frozen machine", vm->name);
  auto thawed = thaw(vm, nullptr, frozen);
  if (!thawed) return within("restore from the frozen machine", thawed.error());
  {
    const std::lock_guard lock(mutex_);
    vm->restored = true;
  }
  context_.events.add("restored", vm->id, {{"name", vm->name}});
  return {};
}

Result<std::shared_ptr<Frozen>> HostImpl::freeze_and_move(const VmPtr& vm, Reservation& reservation,
                                                          bool had_agent, const ForkPlan& plan,
                                                          Steps& steps,
                                                          std::vector<std::string>& undone) {
  std::shared_ptr<QemuProcess> old;
  std::shared_ptr<Frozen> over;
  {
    const std::lock_guard lock(mutex_);
    old = vm->process;
    over = vm->over;
  }
  auto shell = std::move(reservation.shells[0]);
  if (!shell || !shell->alive()) {
    const Ground ground{reservation.memory, reservation.disk, old->ground().boot};
    SNOW_ASSIGN(shell, start_shell(old->config(), ground, vm->name, vm->mac));
  }
  const auto fault = [&](const char* step) {
    const auto& shells = reservation.shells;
    const pid_t clone = shells.size() > 1 && shells[1] ? shells[1]->pid() : 0;
    context_.fault.at(step, {{"old", old->pid()}, {"shell", shell->pid()}, {"clone", clone}});
  };
  fault("reserved");
  int64_t start = monotonic_ns();
  if (had_agent) {
    const auto prepared = old->link()->prepare(kPrepareTimeoutMs);
    if (!prepared) {
      (void)undo_freeze(vm, old, false, true);
      return within("VM '" + vm->name + "'", prepared.error());
    }
    if (channel::field(*prepared, "held") == "0") {
      undone.push_back("processes: not held still while the machine was cloned: " +
                       std::string(channel::field(*prepared, "why")).substr(0, 200));
    }
    steps.emplace_back("prepare", since(start));
  }
  fault("prepared");
  bool stopped = false;
  std::shared_ptr<Frozen> frozen;
  const nlohmann::json record = {{"old", old->to_json()},   {"over", over ? over->id() : ""},
                                 {"new", shell->to_json()}, {"agent", had_agent},
                                 {"ticket", plan.ticket},   {"count", plan.count},
                                 {"call", plan.call}};
  const auto moved = [&]() -> Result<void> {
    SNOW_TRY(shell->connect_link(link_callbacks(vm), GuestLink::Start::thaw));
    SNOW_TRY(context_.store->put("fork", vm->id, record));
    fault("recorded");
    const int64_t pause_start = monotonic_ns();
    stopped = true;
    SNOW_TRY(old->stop());
    steps.emplace_back("stop", since(pause_start));
    fault("stopped");
    SNOW_ASSIGN(frozen,
                Frozen::freeze(context_, old, over, reservation.memory, reservation.disk, steps));
    fault("frozen");
    start = monotonic_ns();
    SNOW_TRY(shell->load_state(frozen->state()));
    steps.emplace_back("load", since(start));
    fault("loaded");
    SNOW_TRY(attach_console(vm, *shell));
    // The point of no return is on record before it is passed: from here on the parent is the new
    // QEMU, whether or not we live to say so.
    nlohmann::json passed = record;
    passed["frozen"] = frozen->id();
    SNOW_TRY(context_.store->put("fork", vm->id, passed));
    fault("passed");
    start = monotonic_ns();
    SNOW_TRY(shell->go_on());
    steps.emplace_back("continue", since(start));
    steps.emplace_back("pause", since(pause_start));
    fault("continued");
    return {};
  }();
  if (!moved) {
    log_warn("fork of VM {}: given up: {}", vm->name, moved.error().message);
    const bool died = shell->ends_within(kDyingMs);
    shell->kill();  // never two of one VM
    (void)shell->ends_within(kDeathTimeoutMs);
    // From here on a daemon that comes after us lets the old QEMU go on.
    if (auto put = context_.store->put("fork", vm->id, record); !put) {
      log_error("VM {}: {}", vm->name, put.error().message);
    }
    const auto back = undo_freeze(vm, old, stopped, had_agent);
    if (back || !frozen) {
      if (frozen) frozen->abandon();
      if (!back) log_error("VM {}: cannot go on: {}", vm->name, back.error().message);
      if (died && back) {
        return fail(
            Code::host_failed,
            "fork of VM '{}': the QEMU that was to go on died ({}); the VM goes on as before",
            vm->name, moved.error().message);
      }
      return within("fork of VM '" + vm->name + "'", moved.error());
    }
    // It must not wake up now. What it was frozen to stays: it is held, or its memory is a file.
    ::kill(old->pid(), SIGKILL);
    nlohmann::json passed = record;
    passed["frozen"] = frozen->id();
    if (auto put = context_.store->put("fork", vm->id, passed); !put) {
      log_error("VM {}: {}", vm->name, put.error().message);
    }
    if (auto restored = restore_parent(vm, frozen); !restored) {
      end_vm(vm, VmState::crashed, {"lost", 0, restored.error().message});
      (void)context_.store->remove("fork", vm->id);
      return within("fork of VM '" + vm->name + "'", restored.error());
    }
    shell = vm->process;
  }
  if (old->link() != nullptr) shell->link()->take_over(*old->link());
  Identity identity;
  {
    const std::lock_guard lock(mutex_);
    identity = identity_of(*vm, ParentOf{plan.ticket, plan.count, plan.call});
    vm->process = shell;
    vm->over = frozen;
    frozen_[frozen->id()] = frozen;
  }
  // Before all else: its processes wait for this. announce() waits for the answer, and tells it if
  // this one fails.
  if (had_agent) (void)shell->link()->begin_resume(identity);
  save(*vm);
  fault("moved");
  return frozen;
}

Result<HostImpl::ForkOutcome> HostImpl::fork_vm(const VmPtr& vm,
                                                std::unique_ptr<Reservation> reservation,
                                                const ForkPlan& plan, Steps steps) {
  const Settler::ForkUnderWay under_way(*settler_);
  bool had_agent = false;
  {
    const std::lock_guard lock(mutex_);
    if (vm->state != VmState::running) {
      return fail(Code::wrong_state, "VM '{}': it is {}; only a running VM can be forked", vm->name,
                  state_name(vm->state));
    }
    had_agent = vm->agent && vm->process->link() != nullptr;
  }
  ForkOutcome outcome;
  const int64_t start = monotonic_ns();
  SNOW_ASSIGN(outcome.frozen,
              freeze_and_move(vm, *reservation, had_agent, plan, steps, outcome.undone));
  const auto& frozen = outcome.frozen;
  // Now, before any clone runs that may be forked in turn: what stands on it is settled after it.
  settler_->add(frozen);
  attach(vm);
  const ParentOf as_parent{plan.ticket, plan.count, plan.call};
  std::promise<void> parent_back;
  std::thread parent([&] {
    const int64_t moved = monotonic_ns();
    if (auto back = announce(vm, had_agent, as_parent); !back) {
      log_warn("VM {}: its agent does not answer after the fork: {}", vm->name,
               back.error().message);
      // Dead, then: its sockets tell it before the keeper does.
      if (!vm->process->ends_within(kDeathTimeoutMs)) {
        outcome.undone.push_back("parent: " + back.error().message);
      }
    }
    steps.emplace_back("parent_agent", since(moved));
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [name, ms] : vm->steps) {
        if (name.starts_with("agent_")) steps.emplace_back("parent_" + name, ms);
      }
    }
    parent_back.set_value();
  });
  TicketPtr ticket;
  std::vector<RemoteThaw> elsewhere;
  {
    const std::lock_guard lock(mutex_);
    if (const auto it = tickets_.find(plan.ticket); it != tickets_.end()) ticket = it->second;
    outcome.clones =
        new_clones(*vm, *frozen, *reservation, plan.count, plan.ticket, plan.parameters, plan.call);
    elsewhere =
        plan_elsewhere(*vm, *reservation, plan.count, plan.ticket, plan.parameters, plan.call);
    if (ticket) list_clones(*ticket, outcome.clones, elsewhere);
  }
  if (ticket) save(*ticket);
  save(*vm);
  for (const VmPtr& clone : outcome.clones) {
    save(*clone);
    context_.events.add("starting", clone->id, {{"name", clone->name}, {"parent", vm->id}});
  }
  Steps remote_steps;
  unsigned up_elsewhere = 0;
  std::thread others([&] {
    if (elsewhere.empty()) return;
    up_elsewhere = bring_up_elsewhere(elsewhere, frozen, had_agent, plan.wait_for_ready,
                                      remote_steps, start, plan.ticket);
  });
  if (outcome.clones.size() >= std::thread::hardware_concurrency()) {
    parent_back.get_future().wait_for(kParentFirst);
  }
  std::vector<std::shared_ptr<QemuProcess>> shells(
      std::make_move_iterator(reservation->shells.begin() + 1),
      std::make_move_iterator(reservation->shells.end()));
  Steps clone_steps;
  unsigned up = bring_up(outcome.clones, std::move(shells), frozen, had_agent, clone_steps, start,
                         plan.wait_for_ready);
  others.join();
  parent.join();
  up += up_elsewhere;
  steps.insert(steps.end(), clone_steps.begin(), clone_steps.end());
  steps.insert(steps.end(), remote_steps.begin(), remote_steps.end());
  for (RemoteThaw& thaw : elsewhere) {
    for (auto& clone : thaw.described) outcome.elsewhere.push_back(std::move(clone));
  }
  steps.emplace_back("total", since(start));
  outcome.steps = std::move(steps);
  {
    const std::lock_guard lock(mutex_);
    vm->steps = outcome.steps;
    for (const std::string& text : vm->undone) outcome.undone.push_back("parent: " + text);
  }
  save(*vm);
  context_.fault.at("announced", {{"shell", vm->process->pid()}});
  if (!vm->process->alive() && vm->state != VmState::stopping) {
    auto restored = restore_parent(vm, frozen);
    if (restored) restored = announce(vm, had_agent, as_parent);
    if (!restored) end_vm(vm, VmState::crashed, {"lost", 0, restored.error().message});
  }
  // Until now a daemon that comes after us finishes the fork.
  if (auto removed = context_.store->remove("fork", vm->id); !removed) {
    log_error("VM {}: {}", vm->name, removed.error().message);
  }
  if (std::exchange(vm->restored, false)) {
    outcome.undone.push_back(
        "parent: its QEMU died during the fork; it was restored from the frozen machine");
  }
  context_.events.add("forked", vm->id,
                      {{"name", vm->name}, {"clones", up}, {"ticket", plan.ticket}});
  if (up < plan.minimum) {
    std::string why;
    for (const VmPtr& clone : outcome.clones) {
      const std::lock_guard operation(clone->operation);
      if (why.empty()) why = clone->exit.message;
      end_vm(clone, VmState::exited, {"killed", 9, "the fork was given up"});
    }
    for (const VmPtr& clone : outcome.clones) (void)remove(clone->id, true);
    if (ticket) (void)kill_elsewhere(ticket);
    if (ticket) drop_ticket(ticket);
    return fail(Code::host_failed,
                "fork of VM '{}': {} of {} clones came up, {} were asked for: {}; they were ended, "
                "the parent goes on",
                vm->name, up, plan.count, plan.minimum, why);
  }
  return outcome;
}

Result<nlohmann::json> HostImpl::fork(const ForkRequest& request) {
  SNOW_ASSIGN(const VmPtr vm, find_live(request.vm));
  const std::lock_guard operation(vm->operation);
  return fork_locked(vm, request);
}

Result<nlohmann::json> HostImpl::fork_locked(const VmPtr& vm, const ForkRequest& request) {
  const int64_t start = monotonic_ns();
  SNOW_TRY(check_parameters(request.parameters, vm->environment));
  std::unique_ptr<Reservation> reservation;
  TicketPtr ticket;
  ForkPlan plan;
  {
    const std::lock_guard lock(mutex_);
    if (vm->state != VmState::running) {
      return fail(Code::wrong_state, "VM '{}': it is {}; only a running VM can be forked", vm->name,
                  state_name(vm->state));
    }
  }
  if (request.ticket.empty()) {
    const std::string id = new_ticket_id();
    SNOW_ASSIGN(reservation,
                make_reservation(vm, request.count, request.minimum, request.placing, id));
    ticket = new_ticket(id, *vm, request.count, reservation->granted(), false);
    ticket->forked = true;
    save(*ticket);
  } else {
    SNOW_ASSIGN(ticket, use_ticket(request.ticket, *vm, reservation));
  }
  plan.count = reservation->granted();
  plan.minimum = request.minimum == 0 ? plan.count : request.minimum;
  plan.ticket = ticket->id;
  plan.parameters = request.parameters;
  plan.wait_for_ready = request.wait_for_ready;
  Steps steps;
  steps.emplace_back("reserve", since(start));
  auto outcome = fork_vm(vm, std::move(reservation), plan, std::move(steps));
  if (!outcome) {
    drop_ticket(ticket);
    return tl::unexpected<Error>(outcome.error());
  }
  nlohmann::json json = {{"ticket", ticket->id},
                         {"parent", describe(vm)},
                         {"clones", nlohmann::json::array()},
                         {"steps", steps_to_json(outcome->steps)},
                         {"undone", outcome->undone}};
  for (const VmPtr& clone : outcome->clones) {
    json["clones"].push_back(describe(clone));
    const std::lock_guard lock(mutex_);
    for (const std::string& text : clone->undone) {
      json["undone"].push_back(clone->name + ": " + text);
    }
  }
  for (auto& clone : outcome->elsewhere) {
    for (const auto& text : clone.value("undone", nlohmann::json::array())) {
      json["undone"].push_back(clone.value("name", "") + ": " + text.get<std::string>());
    }
    json["clones"].push_back(std::move(clone));
  }
  return json;
}

}  // namespace snow
