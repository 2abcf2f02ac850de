// The registry: what a host keeps, as others read it.
#include "cluster/registry.h"

#include <gtest/gtest.h>

#include "cluster/test_directory.h"

namespace snow {
namespace {

constexpr const char* kA = TestCluster::kA;
constexpr const char* kB = TestCluster::kB;

class RegistryTest : public testing::Test {
 protected:
  TestCluster cluster_;
  FaultyDirectory faulty_{*cluster_.directory};
  Registry registry_{faulty_, kA};
};

Kept images(int count) {
  Kept kept = {{"image", {}}, {"frozen", {}}, {"ticket", {}}};
  for (int i = 0; i < count; ++i) kept["image"]["i" + std::to_string(i)] = {{"bytes", i}};
  return kept;
}

TEST_F(RegistryTest, OthersReadWhatAHostKeeps) {
  Kept kept = images(200);  // more than one transaction takes
  kept["ticket"]["t1"] = {{"vm", "v"}, {"clones", {{kB, 3}}}};
  ASSERT_TRUE(registry_.publish(kept));
  EXPECT_EQ(kept_by(faulty_, kA).value(), kept);
  EXPECT_EQ(kept_by(faulty_, kB).value(), images(0));

  kept = images(150);
  kept["image"]["i3"]["bytes"] = 33;
  ASSERT_TRUE(registry_.publish(kept));
  EXPECT_EQ(kept_by(faulty_, kA).value(), kept);
}

TEST_F(RegistryTest, WhatHasNotChangedIsNotWritten) {
  ASSERT_TRUE(registry_.publish(images(3)));
  int calls = 0;
  faulty_.before_each = [&] { ++calls; };
  ASSERT_TRUE(registry_.publish(images(3)));
  EXPECT_EQ(calls, 0);
}

TEST_F(RegistryTest, TheNextDaemonFindsWhatTheLastOneLeft) {
  ASSERT_TRUE(registry_.publish(images(5)));
  Registry next(faulty_, kA);
  ASSERT_TRUE(next.publish(images(2)));
  EXPECT_EQ(kept_by(faulty_, kA).value(), images(2));
}

TEST_F(RegistryTest, AfterAnErrorTheNextCallDoesTheRest) {
  ASSERT_TRUE(registry_.publish(images(1)));
  faulty_.lost_answers = 1;
  EXPECT_FALSE(registry_.publish(images(4)));
  faulty_.down = true;
  EXPECT_FALSE(registry_.publish(images(2)));
  faulty_.down = false;
  ASSERT_TRUE(registry_.publish(images(2)));
  EXPECT_EQ(kept_by(faulty_, kA).value(), images(2));
}

TEST_F(RegistryTest, AnEntryThatCannotBeReadHarmsNothing) {
  Transaction transaction;
  transaction.puts.push_back({std::string("image/") + kA + "/odd", {{"version", 2}}, kNoLease});
  transaction.puts.push_back(
      {std::string("image/") + kA + "/list", nlohmann::json::array(), kNoLease});
  ASSERT_TRUE(faulty_.commit(transaction));
  EXPECT_EQ(kept_by(faulty_, kA).value(), images(0));
  ASSERT_TRUE(registry_.publish(images(1)));
  EXPECT_EQ(kept_by(faulty_, kA).value(), images(1));
  EXPECT_EQ(cluster_.directory->list("image/").value().size(), 1u);
}

TEST_F(RegistryTest, NothingIsLeftOfAHostThatWasRemoved) {
  Registry other(faulty_, kB);
  ASSERT_TRUE(registry_.publish(images(3)));
  ASSERT_TRUE(other.publish(images(1)));
  ASSERT_TRUE(forget_kept(faulty_, kA));
  EXPECT_EQ(kept_by(faulty_, kA).value(), images(0));
  EXPECT_EQ(kept_by(faulty_, kB).value(), images(1));
}

}  // namespace
}  // namespace snow
