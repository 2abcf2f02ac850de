#include "vm/workers.h"

#include <gtest/gtest.h>

#include <atomic>

namespace snow {
namespace {

TEST(Workers, FinishWhatWasPostedBeforeTheyStop) {
  std::atomic<int> done = 0;
  {
    Workers workers(3);
    for (int i = 0; i < 500; ++i) workers.post([&] { ++done; });
  }
  EXPECT_EQ(done, 500);
}

TEST(Workers, TakeNothingAfterStop) {
  std::atomic<int> done = 0;
  Workers workers(2);
  workers.stop();
  workers.post([&] { ++done; });
  EXPECT_EQ(done, 0);
}

TEST(Workers, WorkMayPostMoreWork) {
  std::atomic<int> done = 0;
  {
    Workers workers(1);
    std::atomic<bool> posted = false;
    workers.post([&] {
      workers.post([&] { ++done; });
      posted = true;
    });
    while (!posted) std::this_thread::yield();
  }
  EXPECT_EQ(done, 1);
}

TEST(ForEachParallel, RunsEveryIndexOnceAndNotMoreAtATimeThanAsked) {
  std::vector<std::atomic<int>> runs(200);
  std::atomic<int> active = 0;
  std::atomic<int> most = 0;
  for_each_parallel(runs.size(), 4, [&](size_t i) {
    const int now = ++active;
    int seen = most;
    while (now > seen && !most.compare_exchange_weak(seen, now)) {
    }
    ++runs[i];
    --active;
  });
  for (const auto& count : runs) EXPECT_EQ(count, 1);
  EXPECT_LE(most, 4);
  for_each_parallel(0, 4, [](size_t) { FAIL(); });
}

}  // namespace
}  // namespace snow
