#include "cluster/placement.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>

namespace snow {
namespace {

using Kind = PlacementPolicy::Kind;

PlacementHost host(const std::string& id, unsigned room) {
  PlacementHost one;
  one.id = id;
  one.name = "name-" + id;
  one.live = true;
  one.capacity = {uint64_t{room} << 28, room, 1000};
  one.accelerator = "tcg";
  one.qemu = "7.2";
  return one;
}

PlacementDemand demand(unsigned count, unsigned minimum = 0) {
  PlacementDemand wanted;
  wanted.count = count;
  wanted.minimum = minimum;
  wanted.memory_bytes = 1 << 28;
  wanted.accelerator = "tcg";
  wanted.qemu = "7.2";
  return wanted;
}

using Placed = std::vector<Placement>;

TEST(PlacementTest, LocalStaysHere) {
  const std::vector hosts = {host("a", 4), host("b", 8)};
  EXPECT_EQ(place({}, demand(4), "a", hosts).value(), (Placed{{"a", 4}}));
  EXPECT_EQ(place({}, demand(6), "a", hosts).error().code, Code::no_room);
  EXPECT_EQ(place({}, demand(6, 3), "a", hosts).value(), (Placed{{"a", 4}}));
  EXPECT_EQ(place({}, demand(1), "x", hosts).error().code, Code::not_found);
}

TEST(PlacementTest, PackFillsHereThenTheLargest) {
  const std::vector hosts = {host("a", 2), host("b", 3), host("c", 8)};
  EXPECT_EQ(place({Kind::pack, {}}, demand(9), "a", hosts).value(), (Placed{{"a", 2}, {"c", 7}}));
  EXPECT_EQ(place({Kind::pack, {}}, demand(2), "a", hosts).value(), (Placed{{"a", 2}}));
}

TEST(PlacementTest, SpreadIsEvenAndFillsUpWhereTheOthersAreFull) {
  const std::vector hosts = {host("a", 2), host("b", 9), host("c", 9)};
  EXPECT_EQ(place({Kind::spread, {}}, demand(6), "a", hosts).value(),
            (Placed{{"a", 2}, {"b", 2}, {"c", 2}}));
  EXPECT_EQ(place({Kind::spread, {}}, demand(11), "a", hosts).value(),
            (Placed{{"a", 2}, {"b", 5}, {"c", 4}}));
}

TEST(PlacementTest, NamedHostsAreFoundByIdOrNameAndCountOnce) {
  const std::vector hosts = {host("a", 4), host("b", 4), host("c", 4)};
  EXPECT_EQ(place({Kind::named, {"b", "name-c", "name-b"}}, demand(4), "a", hosts).value(),
            (Placed{{"b", 2}, {"c", 2}}));
  EXPECT_EQ(place({Kind::named, {"zebra"}}, demand(1), "a", hosts).error().code, Code::not_found);
  EXPECT_EQ(place({Kind::named, {}}, demand(1), "a", hosts).error().code, Code::invalid);
}

TEST(PlacementTest, WhatCannotTakeThemIsNamedWithItsReason) {
  std::vector hosts = {host("a", 1), host("b", 9), host("c", 9), host("d", 9), host("e", 9)};
  hosts[1].drain = true;
  hosts[2].live = false;
  hosts[3].qemu = "10.0";
  hosts[4].accelerator = "kvm";
  const auto refused = place({Kind::spread, {}}, demand(5, 2), "a", hosts);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::no_room);
  for (const char* part :
       {"no room for 5 VMs of 0.2 GiB and 1 CPUs, only for 1 of at least 2",
        "name-a has room for 1 (0.2 GiB, 1 CPUs and 1000 VMs free)", "name-b drained",
        "name-c gone", "name-d has QEMU 10.0 instead of 7.2", "name-e has kvm instead of tcg"}) {
    EXPECT_NE(refused.error().message.find(part), std::string::npos)
        << part << " in: " << refused.error().message;
  }
}

TEST(PlacementTest, NonsenseIsInvalid) {
  EXPECT_EQ(place({}, demand(0), "a", {host("a", 1)}).error().code, Code::invalid);
  EXPECT_EQ(place({}, demand(1, 2), "a", {host("a", 1)}).error().code, Code::invalid);
  EXPECT_EQ(place({Kind::spread, {}}, demand(1), "a", {}).error().code, Code::no_room);
}

TEST(PlacementTest, UsedAboveCapacityIsNoRoom) {
  PlacementHost over = host("a", 4);
  over.used = {100ull << 30, 100, 5};
  EXPECT_EQ(place({}, demand(1), "a", {over}).error().code, Code::no_room);
}

// Random clusters, with what fits on each host worked out by counting.
struct Case {
  std::vector<PlacementHost> hosts;
  std::map<std::string, unsigned> room;
  PlacementDemand wanted;
  uint64_t total = 0;
};

Case any_case() {
  Case one;
  one.wanted = demand(*rc::gen::inRange(1u, 60u));
  one.wanted.minimum = *rc::gen::inRange(0u, one.wanted.count + 1);
  one.wanted.memory_bytes = *rc::gen::inRange<uint64_t>(0, 5);
  one.wanted.cpus = *rc::gen::inRange(0u, 4u);
  const int count = *rc::gen::inRange(1, 9);
  for (int i = 0; i < count; ++i) {
    PlacementHost next = host(std::string(1, static_cast<char>('a' + i)), 0);
    next.capacity = {*rc::gen::inRange<uint64_t>(0, 30), *rc::gen::inRange(0u, 30u),
                     *rc::gen::inRange(0u, 20u)};
    next.used = {*rc::gen::inRange<uint64_t>(0, 10), *rc::gen::inRange(0u, 10u),
                 *rc::gen::inRange(0u, 6u)};
    next.live = *rc::gen::inRange(0, 6) != 0;
    next.drain = *rc::gen::inRange(0, 6) == 0;
    if (*rc::gen::inRange(0, 8) == 0) next.qemu = "10.0";
    if (*rc::gen::inRange(0, 8) == 0) next.accelerator = "kvm";
    unsigned room = 0;
    if (next.live && !next.drain && next.qemu == "7.2" && next.accelerator == "tcg") {
      while (next.used.memory_bytes + (room + 1) * one.wanted.memory_bytes <=
                 std::max(next.capacity.memory_bytes, next.used.memory_bytes) &&
             next.used.cpus + (room + 1) * one.wanted.cpus <=
                 std::max(next.capacity.cpus, next.used.cpus) &&
             next.used.vms + room + 1 <= next.capacity.vms) {
        ++room;
      }
    }
    one.room[next.id] = room;
    one.total += room;
    one.hosts.push_back(std::move(next));
  }
  return one;
}

// What holds for every policy that may use all hosts.
std::map<std::string, unsigned> check_whole(const Case& one, const Result<Placed>& placed) {
  const unsigned minimum = one.wanted.minimum == 0 ? one.wanted.count : one.wanted.minimum;
  RC_ASSERT(placed.has_value() == (one.total >= minimum));
  std::map<std::string, unsigned> counts;
  if (!placed) {
    RC_ASSERT(placed.error().code == Code::no_room);
    return counts;
  }
  unsigned sum = 0;
  for (const auto& [id, count] : *placed) {
    RC_ASSERT(count > 0);
    RC_ASSERT(counts.count(id) == 0);
    RC_ASSERT(count <= one.room.at(id));
    counts[id] = count;
    sum += count;
  }
  RC_ASSERT(sum == std::min<uint64_t>(one.wanted.count, one.total));
  return counts;
}

RC_GTEST_PROP(PlacementProperty, SpreadIsAsEvenAsRoomAllows, ()) {
  const Case one = any_case();
  const auto placed = place({Kind::spread, {}}, one.wanted, "a", one.hosts);
  auto counts = check_whole(one, placed);
  if (!placed) return;
  for (const auto& [low, low_room] : one.room) {
    if (counts[low] == low_room) continue;  // full
    for (const auto& [high, high_room] : one.room) RC_ASSERT(counts[high] <= counts[low] + 1);
  }
}

RC_GTEST_PROP(PlacementProperty, PackUsesHereAndAsFewOthersAsPossible, ()) {
  const Case one = any_case();
  const auto placed = place({Kind::pack, {}}, one.wanted, "a", one.hosts);
  auto counts = check_whole(one, placed);
  if (!placed) return;
  const auto granted = static_cast<unsigned>(std::min<uint64_t>(one.wanted.count, one.total));
  RC_ASSERT(counts["a"] == std::min(granted, one.room.at("a")));
  // Every choice of others that holds the rest has at least as many hosts.
  std::vector<unsigned> others;
  size_t used = 0;
  for (const auto& [id, room] : one.room) {
    if (id == "a") continue;
    others.push_back(room);
    used += counts[id] > 0 ? 1 : 0;
  }
  for (unsigned choice = 0; choice < 1u << others.size(); ++choice) {
    unsigned sum = 0;
    size_t size = 0;
    for (size_t i = 0; i < others.size(); ++i) {
      if ((choice >> i & 1) == 0) continue;
      sum += others[i];
      ++size;
    }
    if (sum >= granted - counts["a"]) RC_ASSERT(size >= used);
  }
}

RC_GTEST_PROP(PlacementProperty, TheOrderOfTheHostsDoesNotMatter, ()) {
  Case one = any_case();
  const auto kind = *rc::gen::element(Kind::local, Kind::pack, Kind::spread);
  const auto before = place({kind, {}}, one.wanted, "a", one.hosts);
  std::reverse(one.hosts.begin(), one.hosts.end());
  const auto after = place({kind, {}}, one.wanted, "a", one.hosts);
  RC_ASSERT(before.has_value() == after.has_value());
  if (before) RC_ASSERT(*before == *after);
}

}  // namespace
}  // namespace snow
