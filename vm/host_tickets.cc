// Tickets: reserve, give back, join, kill.
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>

#include "base/file.h"
#include "base/log.h"
#include "vm/host_impl.h"
#include "vm/time_text.h"

namespace snow {
namespace {

std::string base64(const std::string& bytes) {
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');
  const int size = ::EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()),
                                     reinterpret_cast<const unsigned char*>(bytes.data()),
                                     static_cast<int>(bytes.size()));
  text.resize(static_cast<size_t>(size));
  return text;
}

tl::unexpected<Error> no_such_ticket(const std::string& id) {
  return fail(Code::not_found,
              "ticket '{}': no such ticket; it was used up, given back or not yours. Reserve a new "
              "one",
              id);
}

// Who may use, join or kill by a ticket; "": the host, which may.
Result<void> check_owner(const Ticket& ticket, const std::string& vm) {
  if (vm.empty() || ticket.owner == vm) return {};
  for (const CloneEnd& clone : ticket.clones) {
    if (clone.vm != vm) continue;
    return fail(Code::wrong_state,
                "ticket '{}': this VM is one of its clones; only the parent can use it", ticket.id);
  }
  return fail(Code::denied, "ticket '{}': it belongs to another VM", ticket.id);
}

}  // namespace

std::string HostImpl::result_path(const std::string& ticket, unsigned index) const {
  return context_.result_dir() + "/" + ticket + "." + std::to_string(index);
}

void HostImpl::save(const Ticket& ticket) {
  nlohmann::json record;
  {
    const std::lock_guard lock(mutex_);
    if (!tickets_.contains(ticket.id)) return;
    record = ticket_to_record(ticket);
  }
  const auto put = context_.store->put("ticket", ticket.id, record);
  const std::lock_guard lock(mutex_);
  if (put) {
    unsaved_tickets_.erase(ticket.id);
  } else if (unsaved_tickets_.insert(ticket.id).second) {
    log_error("ticket {}: {}", ticket.id, put.error().message);
  }
}

std::string HostImpl::new_ticket_id() { return "t" + random_hex(6); }

HostImpl::TicketPtr HostImpl::new_ticket(const std::string& id, const Vm& owner, unsigned requested,
                                         unsigned granted, bool hierarchical) {
  auto ticket = std::make_shared<Ticket>();
  ticket->id = id;
  ticket->owner = owner.id;
  ticket->hierarchical = hierarchical;
  ticket->requested = requested;
  ticket->granted = granted;
  ticket->created = utc_now();
  const int64_t life_ns = int64_t{context_.settings.ticket_seconds} * 1'000'000'000;
  ticket->deadline_ns = monotonic_ns() + life_ns;
  ticket->expires = rfc3339(wall_clock_ns() + life_ns);
  const std::lock_guard lock(mutex_);
  tickets_[ticket->id] = ticket;
  return ticket;
}

Result<HostImpl::TicketPtr> HostImpl::reserve_ticket(const VmPtr& vm, unsigned count,
                                                     unsigned minimum, const Placing& placing,
                                                     bool hierarchical) {
  if (count == 0) {
    return fail(Code::invalid, "0 clones: ask for at least 1 (at most {})",
                context_.settings.fork_limit);
  }
  const std::string id = new_ticket_id();
  SNOW_ASSIGN(auto reservation, make_reservation(vm, count, minimum, placing, id));
  auto ticket = new_ticket(id, *vm, count, reservation->granted(), hierarchical);
  {
    const std::lock_guard lock(mutex_);
    ticket->reservation = std::move(reservation);
  }
  save(*ticket);
  context_.events.add("reserved", vm->id, {{"ticket", ticket->id}, {"granted", ticket->granted}});
  return ticket;
}

Result<nlohmann::json> HostImpl::reserve(const std::string& name, unsigned count, unsigned minimum,
                                         const Placing& placing) {
  SNOW_ASSIGN(const VmPtr vm, find_live(name));
  SNOW_ASSIGN(const TicketPtr ticket, reserve_ticket(vm, count, minimum, placing, false));
  const std::lock_guard lock(mutex_);
  return ticket_to_json(*ticket);
}

Result<nlohmann::json> HostImpl::tickets() {
  const std::lock_guard lock(mutex_);
  nlohmann::json list = nlohmann::json::array();
  for (const auto& [id, ticket] : tickets_) list.push_back(ticket_to_json(*ticket));
  return list;
}

Result<HostImpl::TicketPtr> HostImpl::use_ticket(const std::string& id, const Vm& user,
                                                 std::unique_ptr<Reservation>& reservation) {
  TicketPtr ticket;
  {
    const std::lock_guard lock(mutex_);
    const auto it = tickets_.find(id);
    if (it == tickets_.end()) return no_such_ticket(id);
    ticket = it->second;
    SNOW_TRY(check_owner(*ticket, user.id));
    if (!ticket->reservation) {
      return fail(Code::spent, "ticket '{}': it was used for a fork already; reserve a new one",
                  id);
    }
    reservation = std::move(ticket->reservation);
    ticket->forked = true;
  }
  save(*ticket);
  return ticket;
}

Result<void> HostImpl::give_back(const std::string& id) {
  std::unique_ptr<Reservation> reservation;
  {
    const std::lock_guard lock(mutex_);
    const auto it = tickets_.find(id);
    if (it == tickets_.end()) return no_such_ticket(id);
    if (!it->second->reservation) {
      return fail(Code::spent, "ticket '{}': it was used; `snow join {}` ends it", id, id);
    }
    reservation = std::move(it->second->reservation);
    tickets_.erase(it);
  }
  return context_.store->remove("ticket", id);
}

void HostImpl::drop_ticket(const TicketPtr& ticket) {
  std::vector<std::string> clones;
  std::map<std::string, nlohmann::json> elsewhere;  // by host
  {
    const std::lock_guard lock(mutex_);
    tickets_.erase(ticket->id);
    for (const CloneEnd& clone : ticket->clones) {
      if (!clone.host.empty()) elsewhere[clone.host].push_back(clone.vm);
      ::unlink(result_path(ticket->id, clone.index).c_str());
      const auto it = vms_.find(clone.vm);
      if (it != vms_.end() && it->second->ended_already()) clones.push_back(clone.vm);
    }
  }
  if (auto removed = context_.store->remove("ticket", ticket->id); !removed) {
    log_error("ticket {}: {}", ticket->id, removed.error().message);
  }
  for (const std::string& clone : clones) (void)remove(clone, false);
  for (const auto& [host, vms] : elsewhere) owe(host, "forget", {{"vms", vms}});
}

void HostImpl::clone_ended(const Vm& vm) {
  if (vm.ticket.empty()) return;
  const std::string how = vm.exit.how == "shutdown" ? "exited" : vm.exit.how;
  if (!vm.home.empty()) {
    const std::string result = result_path(vm.ticket, vm.index);
    const bool there = ::access(result.c_str(), R_OK) == 0;
    owe_ended(vm.home, vm.ticket, vm.id, how, vm.exit.status, there ? result : "");
    return;
  }
  TicketPtr ticket;
  std::vector<Ticket::Waiter> waiters;
  {
    const std::lock_guard lock(mutex_);
    const auto it = tickets_.find(vm.ticket);
    if (it == tickets_.end()) return;
    ticket = it->second;
    for (CloneEnd& clone : ticket->clones) {
      if (clone.vm != vm.id) continue;
      clone.how = how;
      clone.status = vm.exit.status;
    }
    if (ticket->all_ended()) waiters.swap(ticket->waiters);
  }
  save(*ticket);
  for (const auto& waiter : waiters) waiter.wake();
}

Result<HostImpl::TicketPtr> HostImpl::joinable(const std::string& id, const std::string& owner) {
  const std::lock_guard lock(mutex_);
  const auto it = tickets_.find(id);
  if (it == tickets_.end()) return no_such_ticket(id);
  SNOW_TRY(check_owner(*it->second, owner));
  if (!it->second->forked) {
    return fail(Code::wrong_state, "ticket '{}': nothing was forked with it yet", id);
  }
  return it->second;
}

void HostImpl::when_ended(const TicketPtr& ticket, int64_t timeout_ms, std::function<void()> wake) {
  {
    const std::lock_guard lock(mutex_);
    if (!ticket->all_ended() && timeout_ms != 0) {
      const int64_t deadline = timeout_ms < 0 ? INT64_MAX : monotonic_ns() + timeout_ms * 1'000'000;
      ticket->waiters.push_back({deadline, std::move(wake)});
      return;
    }
  }
  wake();
}

Result<nlohmann::json> HostImpl::join(const std::string& id, int64_t timeout_ms) {
  SNOW_ASSIGN(const TicketPtr ticket, joinable(id, ""));
  auto woken = std::make_shared<std::promise<void>>();
  auto future = woken->get_future();
  when_ended(ticket, timeout_ms, [woken] { woken->set_value(); });
  future.wait();
  nlohmann::json list = nlohmann::json::array();
  bool all = false;
  std::vector<CloneEnd> clones;
  {
    const std::lock_guard lock(mutex_);
    if (!tickets_.contains(id)) return no_such_ticket(id);
    clones = ticket->clones;
    all = ticket->all_ended();
  }
  for (const CloneEnd& clone : clones) {
    const std::string result =
        clone.result_bytes == 0
            ? ""
            : snow::read_file(result_path(ticket->id, clone.index)).value_or("");
    list.push_back({{"index", clone.index},
                    {"vm", clone.vm},
                    {"how", clone.how},
                    {"status", clone.status},
                    {"result", base64(result)}});
  }
  if (all) drop_ticket(ticket);
  return nlohmann::json{{"clones", list}};
}

Result<unsigned> HostImpl::kill_or_give_back(const std::string& id, const std::string& owner) {
  bool unused = false;
  {
    const std::lock_guard lock(mutex_);
    const auto it = tickets_.find(id);
    if (it == tickets_.end()) return no_such_ticket(id);
    SNOW_TRY(check_owner(*it->second, owner));
    unused = it->second->reservation != nullptr;
  }
  if (unused) {
    SNOW_TRY(give_back(id));
    return 0;
  }
  SNOW_ASSIGN(const TicketPtr ticket, joinable(id, owner));
  return kill_clones(ticket);
}

unsigned HostImpl::kill_clones(const TicketPtr& ticket) {
  std::vector<VmPtr> clones;
  {
    const std::lock_guard lock(mutex_);
    for (const CloneEnd& clone : ticket->clones) {
      const auto it = vms_.find(clone.vm);
      if (it != vms_.end() && !it->second->ended_already()) clones.push_back(it->second);
    }
  }
  unsigned ended_elsewhere = 0;
  std::thread others([&] { ended_elsewhere = kill_elsewhere(ticket); });
  end_killed(clones);
  others.join();
  return static_cast<unsigned>(clones.size()) + ended_elsewhere;
}

void HostImpl::end_killed(const std::vector<VmPtr>& clones) {
  for_each_parallel(clones.size(), 8, [&](size_t i) {
    const std::lock_guard operation(clones[i]->operation);
    end_vm(clones[i], VmState::exited, {"killed", 9, ""});
  });
}

Result<nlohmann::json> HostImpl::kill_ticket(const std::string& id) {
  SNOW_ASSIGN(const TicketPtr ticket, joinable(id, ""));
  return nlohmann::json{{"count", kill_clones(ticket)}};
}

void HostImpl::expire_tickets() {
  const int64_t now = monotonic_ns();
  std::vector<std::string> unused;
  std::vector<TicketPtr> orphaned;
  std::vector<Ticket::Waiter> late;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, ticket] : tickets_) {
      const auto owner = vms_.find(ticket->owner);
      const bool owner_gone = owner == vms_.end() || owner->second->ended_already();
      if (!ticket->forked && (ticket->deadline_ns < now || owner_gone)) unused.push_back(id);
      // Nobody can ask for the results any more; or those of a fork from the host were removed.
      const bool clones_gone =
          std::none_of(ticket->clones.begin(), ticket->clones.end(), [&](const CloneEnd& clone) {
            return clone.host.empty() ? vms_.contains(clone.vm) : !clone.removed;
          });
      if (ticket->forked && ticket->waiters.empty() && !ticket->clones.empty() &&
          ticket->all_ended() && (owner == vms_.end() || (!ticket->inside && clones_gone))) {
        orphaned.push_back(ticket);
      }
      for (auto it = ticket->waiters.begin(); it != ticket->waiters.end();) {
        if (it->deadline_ns < now) {
          late.push_back(std::move(*it));
          it = ticket->waiters.erase(it);
        } else {
          ++it;
        }
      }
    }
  }
  for (const std::string& id : unused) {
    if (give_back(id)) log_info("ticket {}: given back, it was not used in time", id);
  }
  for (const TicketPtr& ticket : orphaned) drop_ticket(ticket);
  for (const auto& waiter : late) waiter.wake();
}

}  // namespace snow
