// Every scenario with some seeds and few hosts: what must hold holds. tests/soak/simulate runs many
// more. And the simulator itself: the same seed gives the same run.
#include <gtest/gtest.h>

#include "sim/world.h"

namespace snow::sim {
namespace {

constexpr uint64_t kSeeds = 20;

class ScenarioTest : public testing::TestWithParam<ScenarioName> {};

TEST_P(ScenarioTest, holds) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const auto hosts = static_cast<uint32_t>(2 + mix(seed) % 23);
    const Result result = World(make_scenario(GetParam().name, seed, hosts)).run();
    EXPECT_EQ(result.violation, "")
        << "snow-sim --scenario " << GetParam().name << " --seed " << seed << " --hosts " << hosts;
  }
}

std::string test_name(const testing::TestParamInfo<ScenarioName>& info) {
  std::string name(info.param.name);
  for (char& letter : name) {
    if (letter == '-') letter = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, ScenarioTest, testing::ValuesIn(scenario_names()), test_name);

// Runs that failed once, each with what it showed.
struct Regression {
  const char* name;
  const char* scenario;
  uint64_t seed;
  uint32_t hosts;
};

class RegressionTest : public testing::TestWithParam<Regression> {};

TEST_P(RegressionTest, holds) {
  const Regression& run = GetParam();
  const Result result = World(make_scenario(run.scenario, run.seed, run.hosts)).run();
  EXPECT_EQ(result.violation, "") << "snow-sim --scenario " << run.scenario << " --seed "
                                  << run.seed << " --hosts " << run.hosts;
}

constexpr Regression kRegressions[] = {
    {"a_redirect_of_a_hedge_is_followed", "chaos", 30212, 15},
    {"a_restarted_host_waits_at_nobody", "chaos", 30199, 24},
    {"a_restarted_host_waits_at_nobody_2", "chaos", 33968, 9},
    {"a_slow_link_carries_nothing_that_was_given_up", "chaos", 31159, 17},
    {"a_slow_link_carries_nothing_that_was_given_up_2", "chaos", 33117, 5},
    {"a_mute_peer_does_not_hold_up_a_slow_link", "chaos", 32271, 10},
    {"an_origin_that_was_silent_is_noticed_soon", "chaos", 54639, 8},
};

INSTANTIATE_TEST_SUITE_P(Once, RegressionTest, testing::ValuesIn(kRegressions),
                         [](const auto& each) { return std::string(each.param.name); });

// As the engine closes the connection of an ask at its deadline.
TEST(Network, what_is_given_up_frees_the_link) {
  LinkSpec slow;
  slow.up_bytes_per_s = 1e6;
  slow.delay = 0;
  LinkSpec fast;
  fast.delay = 0;
  Network network({slow, fast}, Random(1));
  constexpr Nanos kMs = exchange::kMillisecond;
  EXPECT_EQ(network.unicast(0, 1, 100'000, Lane::demand, 0, 10 * kMs), 100 * kMs);  // too late
  EXPECT_EQ(network.unicast(0, 1, 1'000, Lane::demand, 0, 5 * kMs), exchange::kNever);
  EXPECT_EQ(network.unicast(0, 1, 1'000, Lane::demand, 0), 11 * kMs);
}

TEST(World, the_same_seed_gives_the_same_run) {
  const Result first = World(make_scenario("chaos", 7, 12)).run();
  const Result second = World(make_scenario("chaos", 7, 12)).run();
  const Result other = World(make_scenario("chaos", 8, 12)).run();
  EXPECT_EQ(first.fingerprint, second.fingerprint);
  EXPECT_NE(first.fingerprint, other.fingerprint);
}

TEST(World, a_hundred_hosts_relay_and_multicast) {
  for (const char* name : {"relay", "multicast"}) {
    const Result result = World(make_scenario(name, 1, 100)).run();
    EXPECT_EQ(result.violation, "") << name;
    EXPECT_EQ(result.done.size(), 100u);
  }
}

TEST(World, what_is_not_possible_is_noticed) {
  Scenario scenario = make_scenario("unicast", 1, 4);
  scenario.amplification_most = 1;  // four hosts, without relay
  EXPECT_NE(World(scenario).run().violation, "");
}

}  // namespace
}  // namespace snow::sim
