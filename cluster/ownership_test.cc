// Ownership: one owner at every moment, whatever order things come in and whatever answers get
// lost.
#include "cluster/ownership.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <thread>

#include "cluster/test_directory.h"

namespace snow {
namespace {

constexpr const char* kA = TestCluster::kA;
constexpr const char* kB = TestCluster::kB;

std::vector<std::string> ids(int count) {
  std::vector<std::string> all;
  for (int i = 0; i < count; ++i) all.push_back(fmt::format("vm-{:04}", i));
  return all;
}

class OwnershipTest : public testing::Test {
 protected:
  OwnershipTest() {
    cluster_.put_alive(kA);
    cluster_.put_alive(kB);
  }
  void kill_host(const std::string& id) {
    Transaction transaction;
    transaction.removes = {host_key(id)};
    cluster_.directory->commit(transaction).value();
  }
  TestCluster cluster_;
  FaultyDirectory faulty_{*cluster_.directory};
  Ownership ownership_{faulty_};
};

TEST_F(OwnershipTest, AClaimedVmHasOneOwner) {
  EXPECT_TRUE(ownership_.claim({"x", "y"}, kA, {{"name", "web"}}));
  const VmRecord vm = *ownership_.owner("x").value();
  EXPECT_EQ(vm.host, kA);
  EXPECT_EQ(vm.generation, 1u);
  EXPECT_EQ(vm.info["name"], "web");
  const auto refused = ownership_.claim({"z", "x"}, kB);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::exists);
  EXPECT_NE(refused.error().message.find("VM 'x' belongs to host 'h0000000000aa'"),
            std::string::npos);
  EXPECT_EQ(ownership_.owner("z").value(), std::nullopt);
  EXPECT_EQ(ownership_.mine(kA).value().size(), 2u);
  EXPECT_EQ(ownership_.mine(kB).value().size(), 0u);
}

TEST_F(OwnershipTest, AHostWithoutLeaseMayNotClaim) {
  kill_host(kA);
  const auto refused = ownership_.claim({"x"}, kA);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::wrong_state);
  EXPECT_NE(refused.error().message.find("holds no lease"), std::string::npos);
}

TEST_F(OwnershipTest, AThousandVmsAreClaimedWholeOrNotAtAll) {
  EXPECT_TRUE(ownership_.claim({"vm-0900"}, kB));
  EXPECT_EQ(ownership_.claim(ids(1000), kA).error().code, Code::exists);
  EXPECT_EQ(ownership_.mine(kA).value().size(), 0u);
  EXPECT_EQ(ownership_.mine(kB).value().size(), 1u);
  EXPECT_TRUE(ownership_.release({"vm-0900"}, kB));
  EXPECT_TRUE(ownership_.claim(ids(1000), kA));
  EXPECT_EQ(ownership_.mine(kA).value().size(), 1000u);
  EXPECT_TRUE(ownership_.release(ids(1000), kB));  // not its own: left alone
  EXPECT_EQ(ownership_.mine(kA).value().size(), 1000u);
  EXPECT_TRUE(ownership_.release(ids(1000), kA));
  EXPECT_EQ(ownership_.all().value().size(), 0u);
}

TEST_F(OwnershipTest, LargeInfosAreSplitOverTransactions) {
  const nlohmann::json info = {{"text", std::string(30'000, 'x')}};
  EXPECT_TRUE(ownership_.claim(ids(100), kA, info));
  EXPECT_EQ(ownership_.mine(kA).value().size(), 100u);
  EXPECT_EQ(ownership_.claim({"y"}, kA, {{"text", std::string(40'000, 'x')}}).error().code,
            Code::invalid);
}

TEST_F(OwnershipTest, LostAnswersChangeNothing) {
  faulty_.lost_answers = 1;
  EXPECT_TRUE(ownership_.claim({"x", "y"}, kA));
  EXPECT_EQ(ownership_.owner("x").value()->generation, 1u);
  faulty_.lost_answers = 1;
  EXPECT_EQ(ownership_.transfer("x", 1, kB).value().generation, 2u);
  EXPECT_EQ(ownership_.owner("x").value()->host, kB);
  faulty_.lost_answers = 1;
  EXPECT_TRUE(ownership_.release({"x"}, kB));
  EXPECT_EQ(ownership_.owner("x").value(), std::nullopt);
  kill_host(kA);
  faulty_.lost_answers = 1;
  EXPECT_EQ(ownership_.give_up("y", 1).value().generation, 2u);
  // The directory stays silent: nobody can know.
  cluster_.put_alive(kA);
  faulty_.lost_answers = 100;
  EXPECT_EQ(ownership_.claim({"z"}, kA).error().code, Code::timed_out);
  faulty_.lost_answers = 0;
  // The undoing could be seen to succeed; it may also be left to mine().
  EXPECT_EQ(ownership_.owner("z").value(), std::nullopt);
}

TEST_F(OwnershipTest, TransferComparesTheGeneration) {
  must(ownership_.claim({"x"}, kA));
  EXPECT_EQ(ownership_.transfer("x", 7, kB).error().code, Code::wrong_state);
  EXPECT_EQ(ownership_.transfer("x", 1, TestCluster::kC).error().code, Code::wrong_state);
  const VmRecord moved = ownership_.transfer("x", 1, kB).value();
  EXPECT_EQ(moved.host, kB);
  EXPECT_EQ(moved.generation, 2u);
  EXPECT_EQ(ownership_.transfer("x", 1, kA).error().code, Code::wrong_state);
  EXPECT_EQ(ownership_.transfer("nothing", 1, kA).error().code, Code::not_found);
  EXPECT_EQ(ownership_.set_info("x", 2, {{"a", 1}}).value().generation, 2u);
  EXPECT_EQ(ownership_.owner("x").value()->info["a"], 1);
  EXPECT_EQ(ownership_.set_info("x", 1, {{"a", 2}}).error().code, Code::wrong_state);
}

TEST_F(OwnershipTest, OnlyAVmWhoseHostIsGoneCanBeGivenUp) {
  must(ownership_.claim({"x"}, kA));
  const auto refused = ownership_.give_up("x", 1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::wrong_state);
  EXPECT_NE(refused.error().message.find("holds a lease"), std::string::npos);
  kill_host(kA);
  const VmRecord lost = ownership_.give_up("x", 1).value();
  EXPECT_EQ(lost.state, VmRecord::State::lost);
  EXPECT_EQ(lost.generation, 2u);
  cluster_.put_alive(kA);  // it comes back, and finds that the VM is not its own
  EXPECT_TRUE(ownership_.mine(kA).value().empty());
  EXPECT_EQ(ownership_.transfer("x", 2, kA).error().code, Code::wrong_state);
  EXPECT_TRUE(ownership_.release({"x"}, kA));
  EXPECT_EQ(ownership_.all().value().size(), 1u);  // a lost one is not its to release
  EXPECT_TRUE(ownership_.forget_lost({"x"}));
  EXPECT_EQ(ownership_.all().value().size(), 0u);
}

TEST_F(OwnershipTest, AHostThatWasRemovedLeavesNoVms) {
  must(ownership_.claim(ids(100), kA));
  must(ownership_.claim({"other"}, kB));
  EXPECT_EQ(ownership_.forget_host(kA).error().code, Code::wrong_state);  // it is a member
  EXPECT_EQ(ownership_.mine(kA).value().size(), 100u);
  must(remove_member(*cluster_.directory, kA));
  faulty_.lost_answers = 1;
  EXPECT_TRUE(ownership_.forget_host(kA));
  EXPECT_EQ(ownership_.all().value().size(), 1u);
  EXPECT_TRUE(ownership_.forget_host(kA));
}

TEST_F(OwnershipTest, DamagedRecordsAreNamed) {
  must(ownership_.claim({"x"}, kA));
  cluster_.put("vm/bad", {{"version", 1}, {"host", "nobody"}});
  for (const auto code : {ownership_.owner("bad").error().code, ownership_.mine(kA).error().code,
                          ownership_.all().error().code}) {
    EXPECT_EQ(code, Code::corrupt);
  }
  EXPECT_NE(ownership_.mine(kA).error().message.find("'vm/bad'"), std::string::npos);
  std::vector<Directory::Damaged> damaged;
  EXPECT_EQ(ownership_.all(&damaged).value().size(), 1u);
  ASSERT_EQ(damaged.size(), 1u);
  EXPECT_EQ(damaged[0].key, "vm/bad");
}

TEST_F(OwnershipTest, OfManyWhoClaimTheSameOneGetsIt) {
  std::atomic<int> winners{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, host = i % 2 == 0 ? kA : kB] {
      for (int round = 0; round < 20; ++round) {
        if (ownership_.claim({fmt::format("vm-{}", round), fmt::format("w-{}", round)}, host)) {
          ++winners;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(winners, 20);
  EXPECT_EQ(ownership_.all().value().size(), 40u);
}

// Random steps of two hosts over three VMs, with hosts dying and answers getting lost, against a
// model: who owns what, and that generations only grow.
RC_GTEST_PROP(OwnershipProperty, BehavesLikeItsModel, ()) {
  TestCluster cluster;
  FaultyDirectory faulty(*cluster.directory);
  Ownership ownership(faulty);
  struct Model {
    std::string host;
    uint64_t generation = 0;
    bool lost = false;
  };
  std::map<std::string, Model> model;
  std::map<std::string, bool> alive;
  const std::vector<std::string> hosts = {kA, kB};
  const std::vector<std::string> vms = {"x", "y", "z"};
  const int steps = *rc::gen::inRange(1, 60);
  for (int step = 0; step < steps; ++step) {
    const auto host = *rc::gen::elementOf(hosts);
    const auto vm = *rc::gen::elementOf(vms);
    const auto generation = *rc::gen::inRange<uint64_t>(1, 4);
    faulty.lost_answers = *rc::gen::inRange(0, 2);
    const auto known = model.find(vm);
    const bool owned = known != model.end() && !known->second.lost;
    const bool current = owned && known->second.generation == generation;
    switch (*rc::gen::inRange(0, 6)) {
      case 0: {
        const bool done = ownership.claim({vm}, host).has_value();
        RC_ASSERT(done == (alive[host] && known == model.end()));
        if (done) model[vm] = {host, 1, false};
        break;
      }
      case 1: {
        const bool done = ownership.transfer(vm, generation, host).has_value();
        RC_ASSERT(done == (current && alive[host]));
        if (done) known->second = {host, generation + 1, false};
        break;
      }
      case 2: {
        const bool done = ownership.give_up(vm, generation).has_value();
        RC_ASSERT(done == (current && !alive[known->second.host]));
        if (done) known->second = {known->second.host, generation + 1, true};
        break;
      }
      case 3:
        RC_ASSERT(ownership.release({vm}, host).has_value());
        if (owned && known->second.host == host) model.erase(known);
        break;
      case 4:
        RC_ASSERT(ownership.forget_lost({vm}).has_value());
        if (known != model.end() && known->second.lost) model.erase(known);
        break;
      default: {
        alive[host] = !alive[host];
        if (alive[host]) {
          cluster.put_alive(host);
        } else {
          Transaction transaction;
          transaction.removes = {host_key(host)};
          cluster.directory->commit(transaction).value();
        }
      }
    }
    faulty.lost_answers = 0;
    const auto all = ownership.all().value();
    RC_ASSERT(all.size() == model.size());
    for (const auto& one : all) {
      RC_ASSERT(model[one.id].host == one.host);
      RC_ASSERT(model[one.id].generation == one.generation);
      RC_ASSERT(model[one.id].lost == (one.state == VmRecord::State::lost));
    }
  }
}

}  // namespace
}  // namespace snow
