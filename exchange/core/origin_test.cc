// The origin's promises, one by one.
#include "exchange/core/origin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <set>

namespace snow::exchange {
namespace {

using Kind = Decision::Kind;
using testing::Contains;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr uint32_t kPages = 256;

class OriginTest : public testing::Test {
 protected:
  using Run = exchange::Run;  // not Test::Run

  Decision fetch(HostNumber host, uint32_t page, Lane lane = Lane::demand, bool no_redirect = false,
                 bool again = false) {
    std::vector<Decision> out;
    origin.on_fetch({host, {page, 1}, lane, no_redirect, again}, now, out);
    EXPECT_THAT(out, SizeIs(1));
    return out.at(0);
  }
  std::vector<HostNumber> hosts(const Decision& decision) {
    return {decision.hosts.begin(), decision.hosts.begin() + decision.host_count};
  }
  // Listeners 1..count that have all heard something.
  void listen(HostNumber count) {
    for (HostNumber host = 1; host <= count; ++host) {
      EXPECT_TRUE(origin.multicast().subscribe(host, now));
      origin.multicast().report(host, 100, 0, now);
    }
    EXPECT_EQ(origin.multicast().next(now), Run{});  // the announcement for who joined
  }
  static OriginOptions with_multicast() {
    OriginOptions options;
    options.multicast.on = true;
    return options;
  }

  Nanos now = kSecond;
  Origin origin{kPages, with_multicast()};
};

TEST_F(OriginTest, the_first_is_given_the_bytes_and_later_ones_are_sent_there) {
  EXPECT_EQ(fetch(1, 7).kind, Kind::give);
  const Decision second = fetch(2, 7);
  EXPECT_EQ(second.kind, Kind::redirect);
  EXPECT_THAT(hosts(second), ElementsAre(1));
  EXPECT_FALSE(second.no_wait);
  EXPECT_EQ(fetch(3, 7, Lane::demand, true).kind, Kind::give);
}

TEST_F(OriginTest, nobody_is_sent_to_who_is_wrong_slow_or_gone) {
  fetch(1, 7);
  origin.report_wrong(2, 1);
  EXPECT_EQ(fetch(2, 7).kind, Kind::give);
  EXPECT_EQ(fetch(3, 8).kind, Kind::give);
  origin.report_slow(9, 3, now);
  EXPECT_EQ(fetch(4, 8).kind, Kind::give);
  now += 3 * kSecond;
  EXPECT_THAT(hosts(fetch(5, 8)), Contains(3));
  EXPECT_THAT(hosts(fetch(5, 7)), Contains(1));  // one report is one host's view
  origin.report_wrong(3, 1);
  EXPECT_THAT(hosts(fetch(6, 7)), Not(Contains(1)));
  origin.forget_host(3);
  EXPECT_THAT(hosts(fetch(7, 8)), Not(Contains(3)));
  EXPECT_EQ(origin.traces_of(3), 0u);
}

TEST_F(OriginTest, a_second_ask_never_waits_at_a_peer) {
  fetch(1, 7);
  fetch(2, 7);
  const Decision again = fetch(2, 7, Lane::demand, false, true);
  EXPECT_EQ(again.kind, Kind::redirect);
  EXPECT_TRUE(again.no_wait);
}

TEST_F(OriginTest, a_run_is_answered_in_parts_that_cover_it) {
  fetch(1, 10);
  fetch(1, 11);
  std::vector<Decision> out;
  origin.on_fetch({2, {8, 6}, Lane::hot, false, false}, now, out);
  ASSERT_THAT(out, SizeIs(3));
  EXPECT_EQ(out[0].run, (Run{8, 2}));
  EXPECT_EQ(out[0].kind, Kind::give);
  EXPECT_EQ(out[1].run, (Run{10, 2}));
  EXPECT_EQ(out[1].kind, Kind::redirect);
  EXPECT_EQ(out[2].run, (Run{12, 2}));
}

TEST_F(OriginTest, a_busy_link_puts_bulk_off_and_never_a_demand) {
  origin.set_queued_bytes(1 << 30);
  EXPECT_EQ(fetch(1, 7, Lane::background).kind, Kind::retry);
  EXPECT_EQ(fetch(1, 7).kind, Kind::give);
}

TEST_F(OriginTest, what_several_lack_is_multicast_once) {
  listen(4);
  const Decision first = fetch(1, 7);
  EXPECT_EQ(first.kind, Kind::coming);
  EXPECT_GT(first.wait, 0);
  EXPECT_EQ(fetch(2, 7).kind, Kind::already_coming);
  EXPECT_EQ(origin.multicast().next(now), (Run{7, 1}));
  EXPECT_EQ(origin.multicast().next(now), std::nullopt);
  EXPECT_EQ(fetch(3, 7).kind, Kind::already_coming);
  // A host that does not listen is not told to wait.
  EXPECT_NE(fetch(9, 7).kind, Kind::already_coming);
  now += 30 * kMillisecond;
  const Decision late = fetch(4, 7, Lane::demand, false, true);
  EXPECT_EQ(late.kind, Kind::redirect);
  EXPECT_TRUE(late.no_wait);
  EXPECT_EQ(fetch(4, 7, Lane::demand, true).kind, Kind::give);
  EXPECT_EQ(origin.multicast().next(now), std::nullopt);
}

TEST_F(OriginTest, one_listener_is_no_group) {
  listen(1);
  EXPECT_EQ(fetch(1, 7).kind, Kind::give);
}

TEST_F(OriginTest, while_nobody_has_heard_anything_nobody_waits_and_it_goes_off) {
  origin.multicast().subscribe(1, now);
  origin.multicast().subscribe(2, now);
  uint32_t bursts = 0;
  EXPECT_EQ(origin.multicast().next(now), Run{});
  for (uint32_t page = 0; page < 100; ++page) {
    EXPECT_EQ(fetch(1, page).kind, Kind::give);
    while (origin.multicast().next(now)) ++bursts;
    now += 10 * kMillisecond;
  }
  EXPECT_EQ(bursts, MulticastOptions{}.probe_bursts);
  std::vector<HostNumber> leave;
  origin.multicast().tick(now, leave);
  EXPECT_FALSE(origin.multicast().enabled(now));
  EXPECT_TRUE(origin.multicast().enabled(now + MulticastOptions{}.off_time));
}

TEST_F(OriginTest, the_rate_falls_with_loss_and_rises_without) {
  listen(3);
  const uint64_t start = origin.multicast().rate_bytes_per_s();
  for (int i = 0; i < 5; ++i) {
    now += 100 * kMillisecond;
    for (HostNumber host = 1; host <= 3; ++host) origin.multicast().report(host, 80, 20, now);
  }
  const uint64_t low = origin.multicast().rate_bytes_per_s();
  EXPECT_LT(low, start / 2);
  for (int i = 0; i < 100; ++i) {
    now += 100 * kMillisecond;
    for (HostNumber host = 1; host <= 3; ++host) origin.multicast().report(host, 100, 0, now);
  }
  EXPECT_EQ(origin.multicast().rate_bytes_per_s(), MulticastOptions{}.rate_most);
}

TEST_F(OriginTest, loss_that_the_rate_does_not_change_is_allowed_for) {
  listen(3);
  for (int i = 0; i < 400; ++i) {
    now += 100 * kMillisecond;
    for (HostNumber host = 1; host <= 3; ++host) origin.multicast().report(host, 90, 10, now);
  }
  EXPECT_GT(origin.multicast().rate_bytes_per_s(), MulticastOptions{}.rate_most / 2);
}

TEST_F(OriginTest, a_hopeless_listener_has_to_leave_and_slows_nobody) {
  listen(3);
  std::vector<HostNumber> leave;
  for (int i = 0; i < 60 && leave.empty(); ++i) {
    now += 100 * kMillisecond;
    origin.multicast().report(1, 100, 0, now);
    origin.multicast().report(2, 100, 0, now);
    origin.multicast().report(3, 40, 60, now);
    origin.multicast().tick(now, leave);
  }
  EXPECT_THAT(leave, ElementsAre(3));
  EXPECT_EQ(origin.multicast().listeners(), 2u);
  EXPECT_FALSE(origin.multicast().subscribe(3, now));
  EXPECT_TRUE(origin.multicast().subscribe(3, now + MulticastOptions{}.readmit_time));
}

TEST_F(OriginTest, the_first_hosts_demands_are_the_working_set) {
  for (const uint32_t page : {7u, 8u, 9u, 63u, 64u, 100u}) fetch(1, page);
  fetch(2, 50);
  fetch(1, 51, Lane::hot);
  EXPECT_THAT(origin.working_set(), ElementsAre(Run{7, 3}, Run{63, 2}, Run{100, 1}));
  EXPECT_THAT(origin.working_set(40), ElementsAre(Run{7, 3}, Run{63, 38}));
}

// Whatever is asked in whatever order: parts cover the run; nobody is sent to itself, to a host
// that is forgotten or reported, or (where he would wait there) to one that did not ask before.
RC_GTEST_PROP(Origin, sends_only_to_earlier_hosts, ()) {
  OriginOptions options;
  options.seed = *rc::gen::arbitrary<uint64_t>();
  options.multicast.on = *rc::gen::arbitrary<bool>();
  Origin origin(kPages, options);
  Nanos now = 0;
  std::map<uint32_t, std::vector<HostNumber>> asked;  // by page, in order of first asks
  std::set<HostNumber> gone;
  const int steps = *rc::gen::inRange(1, 200);
  for (int step = 0; step < steps; ++step) {
    now += *rc::gen::inRange<Nanos>(0, 5 * kMillisecond);
    const auto host = *rc::gen::inRange<HostNumber>(1, 12);
    switch (*rc::gen::inRange(0, 12)) {
      case 0:
        origin.forget_host(host);
        RC_ASSERT(origin.traces_of(host) == 0u);
        for (auto& [page, list] : asked) std::erase(list, host);
        continue;
      case 1:
        origin.multicast().subscribe(host, now);
        origin.multicast().report(host, 10, 0, now);
        continue;
      case 2:
        origin.multicast().next(now);
        continue;
      default:
        break;
    }
    Fetch fetch;
    fetch.host = host;
    fetch.run.first = *rc::gen::inRange<uint32_t>(0, kPages - 1);
    fetch.run.count = *rc::gen::inRange<uint32_t>(1, std::min(64u, kPages - fetch.run.first) + 1);
    fetch.lane = static_cast<Lane>(*rc::gen::inRange(0, 3));
    fetch.no_redirect = *rc::gen::inRange(0, 4) == 0;
    for (uint32_t page = fetch.run.first; page < fetch.run.end(); ++page) {
      const auto& list = asked[page];
      fetch.again = fetch.again || std::find(list.begin(), list.end(), host) != list.end();
    }
    std::vector<Decision> out;
    origin.on_fetch(fetch, now, out);
    uint32_t at = fetch.run.first;
    for (const Decision& decision : out) {
      RC_ASSERT(decision.run.first == at);
      at = decision.run.end();
      const bool told = decision.kind == Kind::redirect;
      RC_ASSERT(!(told && fetch.no_redirect));
      RC_ASSERT(told == (decision.host_count > 0));
      for (uint32_t page = decision.run.first; page < decision.run.end(); ++page) {
        auto& list = asked[page];
        for (size_t i = 0; i < decision.host_count; ++i) {
          RC_ASSERT(decision.hosts[i] != host);
          if (decision.no_wait) continue;
          RC_ASSERT(std::find(list.begin(), list.end(), decision.hosts[i]) != list.end() ||
                    origin.multicast().heard(decision.hosts[i], page));
          RC_ASSERT(!origin.multicast().heard(host, page));
          RC_ASSERT(std::find(list.begin(), list.end(), host) == list.end());
        }
        if (decision.kind == Kind::give || told) {
          if (std::find(list.begin(), list.end(), host) == list.end()) list.push_back(host);
        }
      }
    }
    RC_ASSERT(at == fetch.run.end());
  }
}

}  // namespace
}  // namespace snow::exchange
