// Membership: how a host registers, and who may take a registration over.
#include "base/file.h"
#include "base/log.h"
#include "cluster/membership.h"

namespace snow {
namespace {

constexpr int kAttempts = 3;  // when others change meanwhile what we compare with

}  // namespace

// What registers us, given what the directory holds; or why we may not. `replaced` is the lease of
// our own earlier registration, if there is one.
Result<Membership::Plan> Membership::plan_registration() {
  SNOW_ASSIGN(const auto member_entry, directory_.get(member_key(options_.id)));
  if (!member_entry) {
    return fail(Code::denied,
                "host '{}' is not a member of the cluster (removed?); to join it again, stop its "
                "snowd, remove the folder cluster/ in its state folder, start snowd, and `snow "
                "cluster join`",
                options_.id);
  }
  Plan plan;
  SNOW_ASSIGN(plan.member, parse_member(*member_entry));
  plan.compares.push_back({member_entry->key, member_entry->revision});
  SNOW_ASSIGN(const auto entry, directory_.get(host_key(options_.id)));
  plan.compares.push_back({host_key(options_.id), entry ? entry->revision : Transaction::kAbsent});
  if (!entry) return plan;

  SNOW_ASSIGN(const HostRecord there, parse_host(*entry));
  plan.replaced = there.lease;
  const bool registered_before = generation() != 0;
  if (there.instance == instance_) return plan;
  const bool same_folder = there.session == options_.session && there.machine == options_.machine;
  if (same_folder && !registered_before) return plan;  // the daemon was started again
  if (there.session == options_.session && registered_before) {
    superseded_ = true;
    return fail(Code::exists,
                "host '{}': another daemon with the same state folder took its registration over; "
                "this one stays fenced: stop one of them",
                options_.id);
  }
  return fail(Code::exists,
              "host id '{}' is in use by another daemon ('{}' at {}); join this host with an id of "
              "its own, or, if this host has just been started again, wait {} s until the lease of "
              "before is over",
              options_.id, there.name, there.address, options_.lease_seconds);
}

Result<void> Membership::register_host() {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    auto planned = plan_registration();
    if (!planned) {
      note_superseded(planned.error());
      return tl::unexpected<Error>(planned.error());
    }
    Plan& plan = *planned;
    const int64_t asked = options_.clock();
    SNOW_ASSIGN(const LeaseId lease, directory_.grant(options_.lease_seconds));
    ++plan.member.generation;
    name_ = plan.member.name;
    plan.member.address = options_.address;
    lease_ = lease;
    since_ms_ = static_cast<uint64_t>(wall_clock_ns() / 1'000'000);
    HostRecord host = record();
    host.generation = plan.member.generation;
    Transaction transaction;
    transaction.compares = plan.compares;
    transaction.puts.push_back({member_key(options_.id), to_json(plan.member), kNoLease});
    transaction.puts.push_back({host_key(options_.id), to_json(host), lease});
    const auto done = directory_.commit(transaction);
    if (!done || !*done) {
      // If it happened after all, its key goes with the lease.
      (void)directory_.revoke(lease);
      if (!done) return tl::unexpected<Error>(done.error());
      continue;
    }
    lease_deadline_ = asked + options_.lease_seconds * kSecondNs;
    registered_ = true;
    published_ = host.used;
    {
      const std::lock_guard lock(mutex_);
      generation_ = host.generation;
    }
    // Whoever still holds the lease of before learns it at once.
    if (plan.replaced != kNoLease && plan.replaced != lease) (void)directory_.revoke(plan.replaced);
    (void)look();  // `back` may want to see the hosts; if not now, then with the next renewal
    return {};
  }
  return fail(Code::unavailable, "host '{}': its records change all the time", options_.id);
}

void Membership::note_superseded(const Error& error) {
  if (!superseded_) return;
  log_error("cluster: {}", error.message);
  last_code_ = error.code;
  const std::lock_guard lock(mutex_);
  trouble_ = error.message;
}

}  // namespace snow
