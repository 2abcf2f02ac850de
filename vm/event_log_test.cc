#include "vm/event_log.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

namespace snow {
namespace {

using nlohmann::json;

TEST(EventLog, EventsComeInOrderWithTheirMembers) {
  EventLog log;
  const uint64_t first = log.add("run", "vm1", {{"image", "web"}});
  EXPECT_EQ(log.add("stop", "vm1"), first + 1);
  const json events = log.wait(first - 1, 0);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0]["image"], "web");
  EXPECT_EQ(events[0]["seq"], first);
  EXPECT_EQ(events[1]["type"], "stop");
  EXPECT_EQ(events[1]["vm"], "vm1");
  EXPECT_EQ(events[1]["time"].get<std::string>().back(), 'Z');
  EXPECT_EQ(log.wait(first, 0).size(), 1u);
  EXPECT_TRUE(log.wait(first + 1, 0).empty());
}

TEST(EventLog, ZeroMeansOnlyNewOnes) {
  EventLog log;
  log.add("old", "");
  EXPECT_TRUE(log.wait(0, 1).empty());
  std::thread later([&] {
    // Until one is seen: the waiter may not wait yet when the first is added.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    log.add("new", "");
    log.close();
  });
  const json events = log.wait(0, -1);
  later.join();
  ASSERT_LE(events.size(), 1u);
  for (const json& event : events) EXPECT_EQ(event["type"], "new");
}

TEST(EventLog, WhatTheRingLostIsTold) {
  EventLog log;
  const uint64_t first = log.add("e", "");
  for (size_t i = 0; i < EventLog::kEvents + 9; ++i) log.add("e", "");
  const json events = log.wait(first, 0);
  ASSERT_EQ(events.size(), EventLog::kEvents + 1);
  EXPECT_EQ(events[0]["type"], "lost");
  EXPECT_EQ(events[0]["count"], 9);
  for (size_t i = 1; i < events.size(); ++i) {
    EXPECT_EQ(events[i]["seq"].get<uint64_t>(), first + 9 + i);
  }
}

TEST(EventLog, NumbersOfAnEarlierDaemonAndOfTheFutureAreHarmless) {
  EventLog log;
  log.add("e", "");
  EXPECT_EQ(log.wait(1, 0).size(), 1u);
  EXPECT_TRUE(log.wait(UINT64_MAX, 0).empty());
}

TEST(EventLog, LastIsTheNumberToWaitFrom) {
  EventLog log;
  const uint64_t before = log.last();
  EXPECT_EQ(log.add("e", ""), before + 1);
  EXPECT_EQ(log.last(), before + 1);
  EXPECT_EQ(log.wait(before, 0).size(), 1u);
}

TEST(EventLog, CloseWakesWaiters) {
  EventLog log;
  std::thread waiter([&] { EXPECT_TRUE(log.wait(0, -1).empty()); });
  log.close();
  waiter.join();
}

}  // namespace
}  // namespace snow
