// The receiver's promises, one by one. Host 0 is the origin, 1 and up are peers.
#include "exchange/core/receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

namespace snow::exchange {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr HostNumber kOrigin = 0;
constexpr uint32_t kPages = 1000;

class ReceiverTest : public testing::Test {
 protected:
  using Run = exchange::Run;  // not Test::Run

  Want want(uint32_t first, uint32_t count = 1) {
    out.clear();
    return receiver.want({first, count}, now, out);
  }
  void pages(AskId ask, uint32_t first, uint32_t count = 1) {
    out.clear();
    receiver.pages(ask, {first, count}, now, out);
  }
  void redirect(const Ask& ask, std::vector<HostNumber> hosts, bool no_wait = false) {
    out.clear();
    receiver.redirect(ask.id, ask.run, hosts, no_wait, now, out);
  }
  void failed(AskId ask) {
    out.clear();
    receiver.failed(ask, now, out);
  }
  void tick_at(Nanos when) {
    now = when;
    out.clear();
    receiver.tick(now, out);
  }
  // Ticks whenever the core wants to, until something is to be asked; how long that took.
  Nanos until_asked() {
    const Nanos start = now;
    out.clear();
    while (out.asks.empty()) {
      const Nanos next = receiver.next_tick();
      if (next == kNever) return kNever;
      now = std::max(next, now);
      receiver.tick(now, out);
    }
    return now - start;
  }
  // Every later hedge is far away.
  void learn_fast() {
    for (int i = 0; i < 40; ++i) {
      const Want wanted = want(900 + static_cast<uint32_t>(i));
      now += kMillisecond;
      pages(wanted.ask.id, wanted.ask.run.first);
    }
  }

  ReceiverOptions options;
  Receiver receiver{kPages, kOrigin, options};
  Actions out;
  Nanos now = kSecond;
};

TEST_F(ReceiverTest, a_demand_for_an_absent_page_is_one_ask_of_the_origin) {
  const Want wanted = want(7);
  EXPECT_EQ(wanted.state, Want::State::ask);
  EXPECT_EQ(wanted.ask.host, kOrigin);
  EXPECT_EQ(wanted.ask.run, (Run{7, 1}));
  EXPECT_EQ(wanted.ask.lane, Lane::demand);
  EXPECT_EQ(wanted.ask.demand, wanted.demand);
  EXPECT_FALSE(wanted.ask.no_redirect || wanted.ask.again || wanted.ask.no_wait);
  EXPECT_GT(wanted.ask.deadline, now);
  EXPECT_THAT(out.asks, IsEmpty());

  pages(wanted.ask.id, 7);
  EXPECT_THAT(out.arrived, ElementsAre(wanted.demand));
  EXPECT_TRUE(receiver.present(7));
  EXPECT_EQ(want(7).state, Want::State::present);
  EXPECT_EQ(receiver.in_flight(), 0u);
  EXPECT_EQ(receiver.demands_waiting(), 0u);
}

TEST_F(ReceiverTest, a_second_demand_waits_for_the_first_ones_ask) {
  const Want first = want(7);
  const Want second = want(7);
  EXPECT_EQ(second.state, Want::State::wait);
  pages(first.ask.id, 7);
  EXPECT_THAT(out.arrived, testing::UnorderedElementsAre(first.demand, second.demand));
}

TEST_F(ReceiverTest, only_the_missing_pieces_are_asked) {
  receiver.set_present({12, 1});
  const Want wanted = want(10, 5);
  EXPECT_EQ(wanted.ask.run, (Run{10, 2}));
  ASSERT_THAT(out.asks, SizeIs(1));
  const Ask other = out.asks[0];
  EXPECT_EQ(other.run, (Run{13, 2}));
  pages(wanted.ask.id, 10, 2);
  EXPECT_THAT(out.arrived, IsEmpty());
  pages(other.id, 13, 2);
  EXPECT_THAT(out.arrived, ElementsAre(wanted.demand));
}

TEST_F(ReceiverTest, a_redirect_goes_through_its_hosts_and_back_to_the_origin) {
  const Want wanted = want(7);
  redirect(wanted.ask, {3, 4});
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].host, 3);
  EXPECT_EQ(out.asks[0].demand, wanted.demand);
  Ask ask = out.asks[0];
  out.clear();
  receiver.absent(ask.id, ask.run, now, out);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].host, 4);
  failed(out.asks[0].id);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].host, kOrigin);
  EXPECT_TRUE(out.asks[0].no_redirect);
  EXPECT_THAT(out.reports, SizeIs(1));
}

TEST_F(ReceiverTest, a_redirect_from_a_peer_leads_nowhere) {
  const Want wanted = want(7);
  redirect(wanted.ask, {3});
  redirect(out.asks.at(0), {4});
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].host, kOrigin);
}

TEST_F(ReceiverTest, a_host_that_gave_wrong_bytes_is_not_asked_again) {
  redirect(want(7).ask, {3});
  Ask ask = out.asks.at(0);
  out.clear();
  receiver.wrong(ask.id, ask.run, now, out);
  ASSERT_THAT(out.reports, SizeIs(1));
  EXPECT_EQ(out.reports[0].kind, Report::Kind::wrong);
  EXPECT_EQ(out.asks.at(0).host, kOrigin);
  EXPECT_TRUE(out.asks[0].no_redirect);
  now += 3600 * kSecond;
  redirect(want(8).ask, {3, 4});
  EXPECT_EQ(out.asks.at(0).host, 4);
}

TEST_F(ReceiverTest, a_slow_peer_is_hedged_and_the_first_answer_wins) {
  learn_fast();
  const Want wanted = want(7);
  redirect(wanted.ask, {3, 4});
  const Ask slow = out.asks.at(0);
  EXPECT_LT(until_asked(), 20 * kMillisecond);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].host, 4);  // the other peer first
  EXPECT_LT(until_asked(), 20 * kMillisecond);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].host, kOrigin);
  EXPECT_TRUE(out.asks[0].no_redirect);
  const Ask hedge = out.asks[0];
  pages(hedge.id, 7);
  EXPECT_THAT(out.arrived, ElementsAre(wanted.demand));
  pages(slow.id, 7);  // the loser
  EXPECT_THAT(out.arrived, IsEmpty());
  EXPECT_EQ(receiver.counters().duplicates, 1u);
  EXPECT_EQ(receiver.next_tick(), kNever);
}

// On a slow link deadlines are long: a mute peer cost as much as it was left alone for.
TEST_F(ReceiverTest, a_peer_that_cost_much_is_left_alone_for_longer) {
  ReceiverOptions patient;
  patient.bulk_timeout = 20 * kSecond;
  Receiver slow(kPages, kOrigin, patient);
  slow.set_hot({0, 64});
  slow.tick(now, out);
  const Ask first = out.asks.at(0);
  const HostNumber mute = 3;
  out.clear();
  slow.redirect(first.id, first.run, {&mute, 1}, false, now, out);
  ASSERT_EQ(out.asks.at(0).host, mute);
  now = out.asks[0].deadline;
  out.clear();
  slow.tick(now, out);
  now += 120 * kSecond;  // the bytes from the origin took longer than that
  out.clear();
  const Want wanted = slow.want({100, 1}, now, out);
  out.clear();
  slow.redirect(wanted.ask.id, wanted.ask.run, {&mute, 1}, false, now, out);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].host, kOrigin);
}

TEST_F(ReceiverTest, a_demand_on_a_bulk_transfer_does_not_wait_long_for_it) {
  learn_fast();
  receiver.set_hot({0, 64});
  tick_at(now);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].lane, Lane::hot);
  EXPECT_EQ(want(5).state, Want::State::wait);
  EXPECT_LT(until_asked(), 20 * kMillisecond);
  EXPECT_EQ(out.asks.at(0).lane, Lane::demand);
}

// The redirect was thrown away: the page was still on its way in bulk, which is why there was a
// hedge at all.
TEST_F(ReceiverTest, a_redirect_of_a_hedge_is_followed) {
  learn_fast();
  receiver.set_hot({0, 64});
  tick_at(now);
  ASSERT_THAT(out.asks, SizeIs(1));  // never answered
  const Want wanted = want(5);
  EXPECT_LT(until_asked(), 20 * kMillisecond);
  const Ask hedge = out.asks.at(0);
  redirect(hedge, {3}, true);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].host, 3);
  EXPECT_EQ(out.asks[0].run, (Run{5, 1}));
  pages(out.asks[0].id, 5);
  EXPECT_THAT(out.arrived, ElementsAre(wanted.demand));
}

TEST_F(ReceiverTest, an_origin_that_is_gone_is_tried_again_with_growing_pauses) {
  const Want wanted = want(7);
  failed(wanted.ask.id);
  Nanos last = 0;
  for (int i = 0; i < 10; ++i) {
    const Nanos pause = until_asked();
    EXPECT_GE(pause, i == 0 ? options.backoff_least : last);
    EXPECT_LE(pause, options.backoff_most);
    last = pause;
    ASSERT_THAT(out.asks, SizeIs(1));
    failed(out.asks[0].id);
  }
  EXPECT_EQ(last, options.backoff_most);
  EXPECT_EQ(receiver.waiting().at(0).host, kNoHost);
  // Others do not ask while it is so.
  EXPECT_EQ(want(8).state, Want::State::wait);
  out.clear();
  receiver.host_up(kOrigin, now, out);
  ASSERT_THAT(out.asks, SizeIs(2));
  for (const Ask& ask : std::vector<Ask>(out.asks)) pages(ask.id, ask.run.first);
  EXPECT_EQ(receiver.demands_waiting(), 0u);
}

// Deadlines may have grown to many seconds: they are not waited for.
TEST_F(ReceiverTest, a_silent_origin_is_tried_every_few_seconds_while_a_demand_waits) {
  ReceiverOptions patient;
  patient.demand_timeout = 10 * kSecond;
  Receiver slow(kPages, kOrigin, patient);
  const Want wanted = slow.want({7, 1}, now, out);
  now = wanted.ask.deadline;
  size_t asks = 0;
  for (const Nanos end = now + 20 * kSecond; now < end; now = std::max(now, slow.next_tick())) {
    out.clear();
    slow.tick(now, out);
    asks += out.asks.size();
  }
  EXPECT_GE(asks, 8u);  // two seconds apart
  EXPECT_LE(asks, 16u);
}

TEST_F(ReceiverTest, one_answer_of_the_origin_releases_everybody) {
  failed(want(7).ask.id);
  want(8);
  want(9);
  until_asked();
  const Ask probe = out.asks.at(0);
  pages(probe.id, probe.run.first);
  EXPECT_THAT(out.asks, SizeIs(2));
}

TEST_F(ReceiverTest, an_ask_without_an_answer_ends_at_its_deadline) {
  const Want wanted = want(7);
  const Nanos waited = until_asked();
  EXPECT_GE(waited, options.demand_timeout);
  EXPECT_LT(waited, 2 * options.demand_timeout);
  pages(wanted.ask.id, 7);  // late, and welcome
  EXPECT_THAT(out.arrived, ElementsAre(wanted.demand));
}

TEST_F(ReceiverTest, a_multicast_that_does_not_come_is_asked_again) {
  const Want wanted = want(7);
  out.clear();
  receiver.coming(wanted.ask.id, {7, 1}, 10 * kMillisecond, now, out);
  receiver.finished(wanted.ask.id, now, out);
  EXPECT_THAT(out.asks, IsEmpty());
  EXPECT_EQ(until_asked(), 10 * kMillisecond);
  EXPECT_TRUE(out.asks.at(0).again);
  EXPECT_FALSE(out.asks[0].no_redirect);
}

TEST_F(ReceiverTest, what_comes_unasked_wakes_who_waits) {
  const Want wanted = want(7);
  out.clear();
  receiver.coming(wanted.ask.id, {7, 1}, 10 * kMillisecond, now, out);
  receiver.unasked({0, 200}, now, out);
  EXPECT_THAT(out.arrived, ElementsAre(wanted.demand));
  EXPECT_EQ(receiver.next_tick(), kNever);
  EXPECT_EQ(receiver.counters().pages_unasked, 200u);
}

TEST_F(ReceiverTest, bulk_waits_longer_for_multicasts_where_they_come_late) {
  receiver.set_hot({0, 128});
  tick_at(now);
  const std::vector<Ask> asks = out.asks;
  ASSERT_THAT(asks, SizeIs(2));
  const auto time_until_late = [&](const Ask& ask) {
    out.clear();
    receiver.coming(ask.id, ask.run, 10 * kMillisecond, now, out);
    const Nanos waited = until_asked();
    receiver.unasked(ask.run, now, out);
    return waited;
  };
  EXPECT_EQ(time_until_late(asks[0]), 10 * kMillisecond);
  EXPECT_GT(time_until_late(asks[1]), 12 * kMillisecond);
}

TEST_F(ReceiverTest, what_an_answer_left_out_is_asked_again) {
  const Want wanted = want(10, 4);
  pages(wanted.ask.id, 10, 2);
  out.clear();
  receiver.finished(wanted.ask.id, now, out);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].run, (Run{12, 2}));
}

TEST_F(ReceiverTest, a_retry_is_a_pause_that_a_demand_does_not_share) {
  receiver.set_hot({0, 64});
  tick_at(now);
  out.clear();
  receiver.retry(out.asks.empty() ? 1 : out.asks[0].id, {0, 64}, 50 * kMillisecond, now, out);
  EXPECT_THAT(out.asks, IsEmpty());
  const Want wanted = want(5);
  EXPECT_EQ(wanted.state, Want::State::ask);
  until_asked();
  EXPECT_THAT(out.asks, SizeIs(2));  // without page 5
}

TEST_F(ReceiverTest, fill_takes_the_hot_set_then_what_is_near_then_the_rest) {
  receiver.set_hot({640, 64});
  receiver.set_fill(true, 0);
  want(320);
  tick_at(now);
  ASSERT_GE(out.asks.size(), 2u);
  EXPECT_EQ(out.asks[0].run, (Run{640, 64}));
  EXPECT_EQ(out.asks[0].lane, Lane::hot);
  EXPECT_EQ(out.asks[1].run, (Run{321, 63}));
  EXPECT_EQ(out.asks[1].lane, Lane::background);
}

TEST_F(ReceiverTest, bulk_yields_to_demands) {
  receiver.set_fill(true, 0);
  want(999);
  tick_at(now);
  uint32_t in_flight = 0;
  for (const Ask& ask : out.asks) in_flight += ask.run.count;
  EXPECT_LE(in_flight, options.bulk_window_pages_busy + 63);
}

TEST_F(ReceiverTest, fill_keeps_to_its_rate_and_ends_complete) {
  const uint64_t rate = 1 << 20;
  receiver.set_fill(true, rate);
  const Nanos start = now;
  std::vector<Ask> asks;
  while (!receiver.complete()) {
    tick_at(std::max(now, receiver.next_tick()));
    asks = out.asks;
    for (const Ask& ask : asks) {
      out.clear();
      receiver.pages(ask.id, ask.run, now, out);
      asks.insert(asks.end(), out.asks.begin(), out.asks.end());
      if (receiver.complete()) break;
    }
  }
  const double seconds = static_cast<double>(now - start) / 1e9;
  const double expected = 1000.0 * 4096 / static_cast<double>(rate);
  EXPECT_GT(seconds, expected * 0.8);
  EXPECT_LT(seconds, expected * 1.2);
}

TEST_F(ReceiverTest, a_peer_is_served_waits_or_is_told_what_lacks) {
  receiver.set_present({0, 10});
  EXPECT_EQ(receiver.serve({0, 10}, false, now).state, Serve::State::all);
  EXPECT_EQ(receiver.serve({5, 10}, false, now).state, Serve::State::part);
  const Want wanted = want(10);
  EXPECT_EQ(receiver.serve({10, 1}, true, now).state, Serve::State::part);
  const Serve serve = receiver.serve({10, 1}, false, now);
  ASSERT_EQ(serve.state, Serve::State::wait);
  pages(wanted.ask.id, 10);
  EXPECT_THAT(out.arrived, testing::UnorderedElementsAre(wanted.demand, serve.watch));
}

TEST_F(ReceiverTest, a_watch_ends_when_its_pages_are_not_on_their_way_any_more) {
  const Want wanted = want(10);
  const Serve serve = receiver.serve({10, 1}, false, now);
  out.clear();
  receiver.host_down(kOrigin, now, out);
  EXPECT_THAT(out.arrived, ElementsAre(serve.watch));
  EXPECT_EQ(receiver.demands_waiting(), 1u);
  receiver.cancel(wanted.demand);
  EXPECT_EQ(receiver.demands_waiting(), 0u);
  EXPECT_EQ(receiver.in_flight(), 0u);
}

TEST_F(ReceiverTest, a_forgotten_host_is_nobodys_candidate) {
  const Want wanted = want(7);
  redirect(wanted.ask, {3, 4});
  out.clear();
  receiver.forget_host(4, now, out);
  EXPECT_THAT(out.asks, IsEmpty());
  receiver.forget_host(3, now, out);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_EQ(out.asks[0].host, kOrigin);
}

TEST_F(ReceiverTest, a_page_that_was_dropped_is_asked_again_and_not_waited_for_at_peers) {
  receiver.set_present({7, 1});
  receiver.drop({7, 1});
  const Want wanted = want(7);
  EXPECT_EQ(wanted.state, Want::State::ask);
  EXPECT_TRUE(wanted.ask.again);
}

// Hosts 4 and 10 waited for each other: 4 had asked, was restarted, and asked as if for the first
// time, when others waited at it already.
TEST_F(ReceiverTest, a_host_that_may_have_asked_before_asks_again) {
  receiver.set_asked_before();
  EXPECT_TRUE(want(7).ask.again);
}

TEST_F(ReceiverTest, one_that_was_counted_stays_counted) {
  receiver.set_asked_before();
  const Ask first = want(7).ask;
  receiver.retry(first.id, first.run, kMillisecond, now, out);
  tick_at(now + 2 * kMillisecond);
  ASSERT_THAT(out.asks, SizeIs(1));
  EXPECT_TRUE(out.asks[0].again);
}

TEST_F(ReceiverTest, zeros_are_here_and_are_zeros) {
  receiver.set_present({3, 1});
  out.clear();
  receiver.zeros({0, 5}, now, out);
  EXPECT_TRUE(receiver.present(Run{0, 5}));
  EXPECT_TRUE(receiver.zero(0));
  EXPECT_FALSE(receiver.zero(3));
}

// Not an assertion about time: it is printed (./receiver_test --gtest_filter=*cost*).
TEST(ReceiverDrop, what_is_dropped_is_asked_for_again_and_zeros_stay) {
  Receiver receiver(kPages, kOrigin, {});
  Actions out;
  receiver.set_present({0, 10});
  receiver.zeros({10, 5}, 0, out);
  receiver.set_hot({8, 1});
  EXPECT_TRUE(receiver.hot_complete());
  receiver.drop({5, 10});
  EXPECT_EQ(receiver.pages_present(), 10u);
  EXPECT_FALSE(receiver.present(5));
  EXPECT_TRUE(receiver.present(4) && receiver.present(10) && receiver.present(14));
  EXPECT_FALSE(receiver.hot_complete());
  const Want want = receiver.want({5, 1}, 0, out);
  ASSERT_EQ(want.state, Want::State::ask);
  receiver.pages(want.ask.id, {5, 1}, 0, out);
  receiver.set_hot({8, 2});
  EXPECT_FALSE(receiver.hot_complete());
  receiver.set_present({8, 2});
  EXPECT_TRUE(receiver.hot_complete());
}

TEST(ReceiverCost, cost_of_a_demand) {
  constexpr uint32_t kMany = 1 << 18;
  Receiver receiver(kMany, kOrigin, {});
  Actions out;
  Nanos now = 0;
  using Clock = std::chrono::steady_clock;
  Clock::duration in_want{};
  const auto start = Clock::now();
  for (uint32_t i = 0; i < kMany; ++i) {
    out.clear();
    const Want wanted = receiver.want({i * 40503 % kMany, 1}, now, out);
    if (wanted.state == Want::State::ask) receiver.pages(wanted.ask.id, wanted.ask.run, now, out);
    now += 100 * kMicrosecond;
  }
  in_want = Clock::now() - start;
  EXPECT_TRUE(receiver.complete());
  printf("want() and pages(): %.0f ns\n",
         std::chrono::duration<double, std::nano>(in_want).count() / kMany);
}

}  // namespace
}  // namespace snow::exchange
