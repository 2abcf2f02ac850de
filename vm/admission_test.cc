#include "vm/admission.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

namespace snow {
namespace {

constexpr uint64_t kMiB = 1 << 20;

Admission small() {
  return Admission({.memory_bytes = 1024 * kMiB, .vms = 6, .vcpus = 8, .clones = 4});
}

TEST(Admission, RoomIsGivenBackWithTheToken) {
  Admission admission = small();
  {
    const auto token = admission.reserve({.memory_bytes = 256 * kMiB, .cpus = 2, .count = 4});
    ASSERT_TRUE(token);
    EXPECT_EQ(admission.usage().vms, 4u);
    EXPECT_EQ(admission.usage().memory_bytes, 1024 * kMiB);
    EXPECT_EQ(admission.usage().vcpus, 8u);
    const auto refused = admission.reserve({.memory_bytes = 2 * kMiB});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Code::no_room);
  }
  EXPECT_EQ(admission.usage().vms, 0u);
  EXPECT_EQ(admission.usage().memory_bytes, 0u);
  EXPECT_EQ(admission.usage().vcpus, 0u);
}

TEST(Admission, ARefusalNamesTheFiguresAndTheSetting) {
  Admission admission = small();
  const auto held = admission.reserve({.memory_bytes = 512 * kMiB});
  const auto memory = admission.reserve({.memory_bytes = 300 * kMiB, .count = 2});
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().message,
            "no room for 2 VMs, only for 1: 512 MiB of 1024 MiB are promised to VMs and each needs "
            "300 MiB; stop some or raise memory_limit");
  const auto vcpus = admission.reserve({.memory_bytes = kMiB, .cpus = 9});
  EXPECT_NE(vcpus.error().message.find("vcpu_limit"), std::string::npos);
  const auto vms = admission.reserve({.memory_bytes = kMiB, .count = 7});
  EXPECT_NE(vms.error().message.find("vm_limit"), std::string::npos);
  EXPECT_EQ(admission.usage().vms, 1u);
}

TEST(Admission, AMinimumTakesWhatThereIs) {
  Admission admission = small();
  const auto token =
      admission.reserve({.memory_bytes = 400 * kMiB, .count = 4, .minimum = 2, .fork = true});
  ASSERT_TRUE(token);
  EXPECT_EQ(token->count(), 2u);
  EXPECT_EQ(admission.usage().memory_bytes, 800 * kMiB);
}

TEST(Admission, NonsenseIsInvalid) {
  Admission admission = small();
  EXPECT_EQ(admission.reserve({.count = 0}).error().code, Code::invalid);
  EXPECT_EQ(admission.reserve({.count = 2, .minimum = 3}).error().code, Code::invalid);
  EXPECT_EQ(admission.reserve({.count = 5, .fork = true}).error().code, Code::invalid);
  EXPECT_TRUE(admission.reserve({.count = 5}));
  EXPECT_EQ(admission.reserve({.memory_bytes = UINT64_MAX}).error().code, Code::no_room);
}

TEST(Admission, SplitTokensAreGivenBackOneByOne) {
  Admission admission = small();
  auto token = admission.reserve({.memory_bytes = 100 * kMiB, .count = 3}).value();
  Admission::Token one = token.split();
  EXPECT_EQ(one.count(), 1u);
  EXPECT_EQ(token.count(), 2u);
  token.release();
  token.release();
  EXPECT_EQ(admission.usage().memory_bytes, 100 * kMiB);
  Admission::Token moved = std::move(one);
  EXPECT_EQ(admission.usage().vms, 1u);
  moved = Admission::Token();
  EXPECT_EQ(admission.usage().vms, 0u);
}

TEST(Admission, WhatRunsAlreadyCountsBeyondTheLimits) {
  Admission admission = small();
  const auto running = admission.admit(4096 * kMiB, 1);
  EXPECT_EQ(admission.usage().memory_bytes, 4096 * kMiB);
  EXPECT_EQ(admission.reserve({.memory_bytes = kMiB}).error().code, Code::no_room);
  EXPECT_EQ(admission.to_json()["used"]["memory"], 4096 * kMiB);
}

TEST(Admission, ThreadsNeverExceedTheLimit) {
  Admission admission({.memory_bytes = 10, .vms = 10, .vcpus = 10, .clones = 1});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        const auto token = admission.reserve({.memory_bytes = 3, .count = 2, .minimum = 1});
        EXPECT_LE(admission.usage().memory_bytes, 10u);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(admission.usage().vms, 0u);
}

}  // namespace
}  // namespace snow
