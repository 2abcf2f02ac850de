// What programs in guests ask for. Everything here comes from a hostile guest: it can name only its
// own tickets and checkpoints, every number is checked, and its calls are served one at a time.
#include <fcntl.h>

#include "base/file.h"
#include "base/log.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

using channel::field;
using channel::number_field;

constexpr size_t kCheckpointsPerVm = 16;

Result<unsigned> count_field(const channel::Fields& fields, std::string_view key) {
  const auto number = number_field(fields, key);
  if (!number || *number < 0 || *number > 65535) {
    return fail(Code::invalid, "{}: must be a number from 0 to 65535", key);
  }
  return static_cast<unsigned>(*number);
}

// "spread" or "local"; without it, as the host thinks best.
Placing placing_of(const channel::Fields& fields) {
  Placing placing;
  const std::string_view policy = field(fields, "place");
  if (policy == "spread" || policy == "local") placing.policy = policy;
  return placing;
}

}  // namespace

GuestLink::Callbacks HostImpl::link_callbacks(const VmPtr& vm) {
  GuestLink::Callbacks callbacks;
  const std::weak_ptr<Vm> weak = vm;
  callbacks.on_hello = [this, weak] {
    workers_->post([this, weak] {
      if (const auto alive = weak.lock()) guest_hello(alive);
    });
  };
  callbacks.on_call = [this, weak](std::shared_ptr<GuestCall> call) {
    if (const auto alive = weak.lock()) guest_call(alive, std::move(call));
  };
  return callbacks;
}

// The agent says hello after it has started (a boot, or it was restarted): it is told who it is.
// After a thaw the agent does not start; bring_up() and fork_vm() talk to it.
void HostImpl::guest_hello(const VmPtr& vm) {
  const std::lock_guard operation(vm->operation);
  {
    const std::lock_guard lock(mutex_);
    if (!vm->process || vm->process->link() == nullptr || vm->agent) return;
    if (vm->state != VmState::running) return;
  }
  Identity identity = identity_of(*vm, {});
  identity.call = 0;  // whoever asked for a fork is gone, or has its answer
  Result<ReadyReport> ready =
      vm->process->link()->resume(identity, static_cast<int>(context_.settings.agent_ready_ms));
  if (!ready) {
    log_warn("VM {}: its agent said hello, but does not answer: {}", vm->name,
             ready.error().message);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    vm->agent = true;
    vm->undone.clear();
  }
  changed_.notify_all();
  save(*vm);
  context_.events.add("agent", vm->id, {{"name", vm->name}});
}

void HostImpl::guest_call(const VmPtr& vm, std::shared_ptr<GuestCall> call) {
  {
    const std::lock_guard lock(mutex_);
    vm->calls.push_back(std::move(call));  // bounded by the link
    if (vm->in_call) return;
    vm->in_call = true;
  }
  workers_->post([this, vm] { next_call(vm); });
}

void HostImpl::next_call(const VmPtr& vm) {
  std::shared_ptr<GuestCall> call;
  {
    const std::lock_guard lock(mutex_);
    if (vm->calls.empty()) {
      vm->in_call = false;
      return;
    }
    call = std::move(vm->calls.front());
    vm->calls.pop_front();
  }
  serve_call(vm, call);
  call.reset();
  workers_->post([this, vm] { next_call(vm); });
}

void HostImpl::serve_call(const VmPtr& vm, const std::shared_ptr<GuestCall>& call) {
  const channel::Fields& fields = call->fields();
  const std::string_view name = field(fields, "call");
  const auto served = [&]() -> Result<void> {
    if (name == "ticket") {
      SNOW_ASSIGN(const unsigned count, count_field(fields, "n"));
      const unsigned minimum =
          fields.contains("minimum") ? count_field(fields, "minimum").value_or(0) : 1;
      SNOW_ASSIGN(const TicketPtr ticket, reserve_ticket(vm, count, minimum, placing_of(fields),
                                                         field(fields, "hierarchical") == "1"));
      {
        const std::lock_guard lock(mutex_);
        ticket->inside = true;
      }
      save(*ticket);
      call->answer({{"ticket", ticket->id}, {"granted", std::to_string(ticket->granted)}});
      return {};
    }
    if (name == "clone") return call_clone(vm, *call);
    if (name == "checkpoint") return call_checkpoint(vm, *call);
    if (name == "create") return call_create(vm, *call);
    if (name == "exit") return call_exit(vm, *call);
    if (name == "join") return call_join(vm, call);
    if (name == "kill") {
      SNOW_ASSIGN(const unsigned ended,
                  kill_or_give_back(std::string(field(fields, "ticket")), vm->id));
      call->answer({{"count", std::to_string(ended)}});
      return {};
    }
    if (name == "info") {
      const std::lock_guard lock(mutex_);
      call->answer({{"id", vm->id},
                    {"name", vm->name},
                    {"index", std::to_string(vm->index)},
                    {"parent", vm->parent},
                    {"generation", std::to_string(vm->generation)},
                    {"ticket", vm->ticket}});
      return {};
    }
    return fail(Code::usage, "call '{}': not known to this host", std::string(name).substr(0, 64));
  }();
  if (!served) call->refuse(served.error());
}

// Answered by the agent itself, in the parent and in every clone, when it is told who it is.
Result<void> HostImpl::call_clone(const VmPtr& vm, GuestCall& call) {
  const std::lock_guard operation(vm->operation);
  std::unique_ptr<Reservation> reservation;
  SNOW_ASSIGN(const TicketPtr ticket,
              use_ticket(std::string(field(call.fields(), "ticket")), *vm, reservation));
  ForkPlan plan;
  plan.count = reservation->granted();
  plan.minimum = 0;  // what became of each clone is told at the join
  plan.ticket = ticket->id;
  plan.call = call.number();
  auto outcome = fork_vm(vm, std::move(reservation), plan, {});
  if (!outcome) {
    drop_ticket(ticket);
    return tl::unexpected<Error>(outcome.error());
  }
  return {};
}

Result<void> HostImpl::call_checkpoint(const VmPtr& vm, GuestCall& call) {
  const std::lock_guard operation(vm->operation);
  {
    const std::lock_guard lock(mutex_);
    size_t held = 0;
    for (const auto& [id, checkpoint] : checkpoints_) held += checkpoint.owner == vm->id ? 1 : 0;
    if (held >= kCheckpointsPerVm) {
      return fail(Code::no_room, "checkpoint: this VM has {} already, which is the limit", held);
    }
  }
  SNOW_ASSIGN(auto reservation, make_reservation(vm, 0, 0, {}, ""));
  ForkPlan plan;
  plan.call = call.number();
  SNOW_ASSIGN(auto outcome, fork_vm(vm, std::move(reservation), plan, {}));
  const std::string id = "c" + random_hex(6);
  {
    const std::lock_guard lock(mutex_);
    checkpoints_[id] = {vm->id, outcome.frozen, call.number()};
  }
  (void)context_.store->put(
      "checkpoint", id,
      {{"owner", vm->id}, {"frozen", outcome.frozen->id()}, {"call", call.number()}});
  call.answer({{"checkpoint", id}});
  return {};
}

Result<void> HostImpl::call_create(const VmPtr& vm, GuestCall& call) {
  const std::string id(field(call.fields(), "checkpoint"));
  std::shared_ptr<Frozen> frozen;
  uint32_t asked = 0;
  {
    std::unique_lock lock(mutex_);
    const auto it = checkpoints_.find(id);
    if (it == checkpoints_.end() || it->second.owner != vm->id) {
      return fail(Code::not_found, "checkpoint '{}': this VM has no such checkpoint", id);
    }
    frozen = it->second.frozen;
    asked = it->second.call;
    // Its images are shown again under other files: they must be files themselves by then.
    changed_.wait(lock, [&] { return frozen->settled() || stopping_; });
  }
  std::unique_ptr<Reservation> reservation;
  SNOW_ASSIGN(const TicketPtr ticket,
              use_ticket(std::string(field(call.fields(), "ticket")), *vm, reservation));
  const Settler::ForkUnderWay under_way(*settler_);
  const int64_t start = monotonic_ns();
  auto shown = Frozen::alias(context_, *frozen, reservation->memory, reservation->disk);
  if (!shown) {
    drop_ticket(ticket);
    return tl::unexpected<Error>(shown.error());
  }
  std::vector<VmPtr> clones;
  std::vector<RemoteThaw> elsewhere;
  {
    const std::lock_guard lock(mutex_);
    frozen_[(*shown)->id()] = *shown;
    clones = new_clones(*vm, **shown, *reservation, ticket->granted, ticket->id, {}, asked);
    elsewhere = plan_elsewhere(*vm, *reservation, ticket->granted, ticket->id, {}, asked);
    list_clones(*ticket, clones, elsewhere);
  }
  save(*ticket);
  for (const VmPtr& clone : clones) save(*clone);
  std::vector<std::shared_ptr<QemuProcess>> shells(
      std::make_move_iterator(reservation->shells.begin() + 1),
      std::make_move_iterator(reservation->shells.end()));
  Steps steps;
  unsigned up_elsewhere = 0;
  // Of the checkpoint itself: hosts that hold its images already fetch nothing again.
  std::thread others([&] {
    Steps theirs;
    if (elsewhere.empty()) return;
    up_elsewhere = bring_up_elsewhere(elsewhere, frozen, true, true, theirs, start, ticket->id);
  });
  unsigned up = bring_up(clones, std::move(shells), *shown, true, steps, start);
  others.join();
  up += up_elsewhere;
  context_.events.add("forked", vm->id,
                      {{"name", vm->name}, {"clones", up}, {"ticket", ticket->id}});
  call.answer({{"count", std::to_string(up)}});
  return {};
}

Result<void> HostImpl::call_exit(const VmPtr& vm, GuestCall& call) {
  const auto status = number_field(call.fields(), "status");
  if (!status || *status < INT32_MIN || *status > INT32_MAX) {
    return fail(Code::invalid, "exit: status must be a number of 32 bits");
  }
  if (call.payload().size() > channel::kMaxResultBytes) {
    return fail(Code::invalid, "exit: a result of {} bytes; at most {}", call.payload().size(),
                channel::kMaxResultBytes);
  }
  TicketPtr ticket;
  if (!vm->home.empty() && !call.payload().empty()) {
    // Goes to the ticket's host with the news of the end.
    SNOW_TRY(snow::write_file(result_path(vm->ticket, vm->index), call.payload(), 0600));
  }
  {
    const std::lock_guard lock(mutex_);
    const auto it = tickets_.find(vm->ticket);
    if (it != tickets_.end() && vm->home.empty()) ticket = it->second;
    if (vm->ticket.empty()) {
      return fail(Code::wrong_state, "exit: this VM is not a clone; shut it down instead");
    }
    if (ticket && ticket->result_bytes() + call.payload().size() > kTicketResultBytes) {
      return fail(Code::no_room, "exit: the results of this ticket exceed {} bytes together",
                  kTicketResultBytes);
    }
  }
  if (ticket && !call.payload().empty()) {
    SNOW_TRY(snow::write_file(result_path(ticket->id, vm->index), call.payload(), 0600));
    const std::lock_guard lock(mutex_);
    for (CloneEnd& clone : ticket->clones) {
      if (clone.vm == vm->id) clone.result_bytes = call.payload().size();
    }
  }
  const std::lock_guard operation(vm->operation);
  end_vm(vm, VmState::exited, {"exited", static_cast<int>(*status), ""});
  return {};
}

Result<void> HostImpl::call_join(const VmPtr& vm, const std::shared_ptr<GuestCall>& call) {
  SNOW_ASSIGN(const TicketPtr ticket,
              joinable(std::string(field(call->fields(), "ticket")), vm->id));
  const int64_t timeout_ms = number_field(call->fields(), "timeout_ms").value_or(-1);
  when_ended(ticket, std::min<int64_t>(timeout_ms, INT64_MAX / 2'000'000), [this, ticket, call] {
    workers_->post([this, ticket, call] { answer_join(ticket, *call); });
  });
  return {};
}

void HostImpl::answer_join(const TicketPtr& ticket, GuestCall& call) {
  std::vector<CloneEnd> clones;
  bool all = false;
  {
    const std::lock_guard lock(mutex_);
    if (!tickets_.contains(ticket->id)) {
      call.refuse(Error{Code::spent, "ticket '" + ticket->id + "': it was joined already"});
      return;
    }
    clones = ticket->clones;
    all = ticket->all_ended();
  }
  channel::Fields fields = {{"count", std::to_string(clones.size())}};
  std::string payload;
  for (size_t i = 0; i < clones.size(); ++i) {
    const CloneEnd& clone = clones[i];
    const std::string result =
        clone.result_bytes == 0
            ? ""
            : snow::read_file(result_path(ticket->id, clone.index)).value_or("");
    const std::string prefix = std::to_string(i) + ".";
    fields[prefix + "index"] = std::to_string(clone.index);
    fields[prefix + "how"] = clone.how;
    fields[prefix + "status"] = std::to_string(clone.status);
    fields[prefix + "size"] = std::to_string(result.size());
    payload += result;
  }
  call.answer(fields, payload);
  if (all) drop_ticket(ticket);
}

}  // namespace snow
