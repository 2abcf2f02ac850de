// The map of pages against a plain set, and the histogram's promise of accuracy.
#include "exchange/core/page_map.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <set>

#include "exchange/core/latency.h"

namespace snow::exchange {
namespace {

RC_GTEST_PROP(PageMap, agrees_with_a_set, ()) {
  const auto pages = *rc::gen::inRange<uint32_t>(1, 300);
  PageMap map(pages);
  std::set<uint32_t> model;
  const auto steps = *rc::gen::inRange(0, 30);
  for (int step = 0; step < steps; ++step) {
    const auto first = *rc::gen::inRange<uint32_t>(0, pages);
    const Run run{first, *rc::gen::inRange<uint32_t>(0, pages - first + 1)};
    const bool set = *rc::gen::arbitrary<bool>();
    const size_t before = model.size();
    for (uint32_t page = run.first; page < run.end(); ++page) {
      if (set) {
        model.insert(page);
      } else {
        model.erase(page);
      }
    }
    const uint32_t changed = set ? map.set(run) : map.reset(run);
    RC_ASSERT(changed == (set ? model.size() - before : before - model.size()));
    RC_ASSERT(map.count() == model.size());
    for (uint32_t page = 0; page < pages; ++page) {
      RC_ASSERT(map.test(page) == model.contains(page));
      for (uint32_t bit = 0; bit < 64; ++bit) {
        RC_ASSERT((map.bits(page) >> bit & 1) == (model.contains(page + bit) ? 1u : 0u));
      }
    }
    bool all = true;
    for (uint32_t page = run.first; page < run.end(); ++page) all = all && model.contains(page);
    RC_ASSERT(map.all(run) == all);
  }
}

RC_GTEST_PROP(Latency, a_quantile_is_at_most_a_quarter_too_high, ()) {
  Latency latency;
  const auto times = *rc::gen::nonEmpty(
      rc::gen::container<std::multiset<Nanos>>(rc::gen::inRange<Nanos>(4, 10 * kSecond)));
  for (const Nanos time : times) latency.add(time);
  const Nanos most = *times.rbegin();
  RC_ASSERT(latency.quantile(1) > most);
  RC_ASSERT(latency.quantile(1) <= most + most / 4 + 1);
  RC_ASSERT(latency.quantile(0) > *times.begin());
}

TEST(Latency, forgets_old_times) {
  Latency latency(64);
  for (int i = 0; i < 1000; ++i) latency.add(kSecond);
  for (int i = 0; i < 1000; ++i) latency.add(kMicrosecond);
  EXPECT_LT(latency.quantile(0.95), 2 * kMicrosecond);
  EXPECT_EQ(latency.count(), 2000u);
}

}  // namespace
}  // namespace snow::exchange
