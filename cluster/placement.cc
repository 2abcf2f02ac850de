#include "cluster/placement.h"

#include <algorithm>
#include <map>

namespace snow {
namespace {

constexpr size_t kHostsInMessage = 8;

struct Room {
  const PlacementHost* host = nullptr;
  unsigned room = 0;    // how many of the demanded fit
  std::string why_not;  // why it is 0 whatever is free
};

template <class Number>
Number left(Number capacity, Number used) {
  return capacity > used ? capacity - used : 0;
}

Room room_of(const PlacementHost& host, const PlacementDemand& demand) {
  if (!host.live) return {&host, 0, "gone"};
  if (host.drain) return {&host, 0, "drained"};
  if (!demand.accelerator.empty() && host.accelerator != demand.accelerator) {
    return {&host, 0, fmt::format("has {} instead of {}", host.accelerator, demand.accelerator)};
  }
  if (!demand.qemu.empty() && host.qemu != demand.qemu) {
    return {&host, 0, fmt::format("has QEMU {} instead of {}", host.qemu, demand.qemu)};
  }
  uint64_t room = left(host.capacity.vms, host.used.vms);
  if (demand.cpus > 0) {
    room = std::min<uint64_t>(room, left(host.capacity.cpus, host.used.cpus) / demand.cpus);
  }
  if (demand.memory_bytes > 0) {
    room = std::min(room,
                    left(host.capacity.memory_bytes, host.used.memory_bytes) / demand.memory_bytes);
  }
  return {&host, static_cast<unsigned>(room), ""};
}

const PlacementHost* find_host(const std::vector<PlacementHost>& hosts, const std::string& who) {
  for (const auto& host : hosts) {
    if (host.id == who) return &host;
  }
  for (const auto& host : hosts) {
    if (host.name == who) return &host;
  }
  return nullptr;
}

Result<std::vector<Room>> candidates(const PlacementPolicy& policy, const PlacementDemand& demand,
                                     const std::string& here,
                                     const std::vector<PlacementHost>& hosts) {
  using Kind = PlacementPolicy::Kind;
  std::vector<std::string> wanted;
  if (policy.kind == Kind::local) wanted = {here};
  if (policy.kind == Kind::named) wanted = policy.hosts;
  std::map<std::string, Room> by_id;  // each host once, however often it was named
  for (const auto& who : wanted) {
    const PlacementHost* host = find_host(hosts, who);
    if (host == nullptr) {
      return fail(Code::not_found, "host '{}': no such host in the cluster; `snow host ls`", who);
    }
    by_id[host->id] = room_of(*host, demand);
  }
  if (policy.kind == Kind::pack || policy.kind == Kind::spread) {
    for (const auto& host : hosts) by_id[host.id] = room_of(host, demand);
  }
  std::vector<Room> rooms;
  for (auto& [id, room] : by_id) rooms.push_back(std::move(room));
  return rooms;
}

void more_room_first(std::vector<Room>& rooms) {
  std::stable_sort(rooms.begin(), rooms.end(),
                   [](const Room& a, const Room& b) { return a.room > b.room; });
}

using Counts = std::map<std::string, unsigned>;

// `count` is at most what fits in all of them together.
Counts pack(std::vector<Room> rooms, unsigned count, const std::string& here) {
  more_room_first(rooms);
  std::stable_partition(rooms.begin(), rooms.end(),
                        [&](const Room& room) { return room.host->id == here; });
  Counts counts;
  for (const Room& room : rooms) {
    const unsigned given = std::min(room.room, count);
    counts[room.host->id] = given;
    count -= given;
  }
  return counts;
}

// No host gets two more than another that has room left: from the smallest up, each gets its share
// of what is left, and what does not divide goes to those with the most room.
Counts spread(std::vector<Room> rooms, unsigned count) {
  more_room_first(rooms);
  Counts counts;
  for (size_t left_hosts = rooms.size(); left_hosts > 0; --left_hosts) {
    const Room& smallest = rooms[left_hosts - 1];
    const unsigned given = std::min(smallest.room, count / static_cast<unsigned>(left_hosts));
    counts[smallest.host->id] = given;
    count -= given;
  }
  return counts;
}

std::string gib(uint64_t bytes) {
  return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1u << 30));
}

std::string describe(const Room& room) {
  const PlacementHost& host = *room.host;
  if (!room.why_not.empty()) return fmt::format("{} {}", host.name, room.why_not);
  return fmt::format("{} has room for {} ({}, {} CPUs and {} VMs free)", host.name, room.room,
                     gib(left(host.capacity.memory_bytes, host.used.memory_bytes)),
                     left(host.capacity.cpus, host.used.cpus),
                     left(host.capacity.vms, host.used.vms));
}

tl::unexpected<Error> no_room(const PlacementDemand& demand, std::vector<Room> rooms,
                              uint64_t total, unsigned minimum) {
  more_room_first(rooms);
  std::string text;
  for (size_t i = 0; i < rooms.size() && i < kHostsInMessage; ++i) {
    text += (i == 0 ? "" : "; ") + describe(rooms[i]);
  }
  if (rooms.size() > kHostsInMessage) {
    text += fmt::format("; and {} more hosts", rooms.size() - kHostsInMessage);
  }
  return fail(
      Code::no_room,
      "no room for {} VMs of {} and {} CPUs, only for {} of at least {}: {}; ask for fewer, "
      "or end VMs",
      demand.count, gib(demand.memory_bytes), demand.cpus, total, minimum,
      text.empty() ? "no host is known" : text);
}

}  // namespace

Result<std::vector<Placement>> place(const PlacementPolicy& policy, const PlacementDemand& demand,
                                     const std::string& here,
                                     const std::vector<PlacementHost>& hosts) {
  if (demand.count == 0) return fail(Code::invalid, "placement: a count of 0");
  if (demand.minimum > demand.count) {
    return fail(Code::invalid, "placement: a minimum of {} above the count of {}", demand.minimum,
                demand.count);
  }
  if (policy.kind == PlacementPolicy::Kind::named && policy.hosts.empty()) {
    return fail(Code::invalid, "placement: no host is named");
  }
  SNOW_ASSIGN(const std::vector<Room> rooms, candidates(policy, demand, here, hosts));
  uint64_t total = 0;
  for (const Room& room : rooms) total += room.room;
  const unsigned minimum = demand.minimum == 0 ? demand.count : demand.minimum;
  if (total < minimum) return no_room(demand, rooms, total, minimum);
  const auto count = static_cast<unsigned>(std::min<uint64_t>(demand.count, total));
  const bool packed = policy.kind == PlacementPolicy::Kind::pack;
  std::vector<Placement> placed;
  for (const auto& [id, given] : packed ? pack(rooms, count, here) : spread(rooms, count)) {
    if (given > 0) placed.push_back({id, given});
  }
  return placed;
}

}  // namespace snow
