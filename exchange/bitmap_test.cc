#include "exchange/bitmap.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <utility>

namespace snow::exchange {
namespace {

TEST(Bitmap, AStretchEndsWhereItsKindEnds) {
  uint64_t words[2] = {0b0111, 0};
  Bitmap map(words, 100);
  map.set(70);
  const auto stretch = [&](uint32_t first, uint32_t end) {
    const Bitmap::Stretch found = map.stretch(first, end);
    return std::pair(found.set, found.end);
  };
  EXPECT_EQ(stretch(0, 100), std::pair(true, 3u));
  EXPECT_EQ(stretch(0, 2), std::pair(true, 2u));
  EXPECT_EQ(stretch(2, 3), std::pair(true, 3u));
  EXPECT_EQ(stretch(3, 100), std::pair(false, 70u));
  EXPECT_EQ(stretch(71, 100), std::pair(false, 100u));
}

// A relay that answered while the page came said "these 0 pages are ABSENT", which is no answer:
// the host that asked took it for one that lies, and asked it no more.
TEST(Bitmap, AStretchIsNeverEmptyWhateverOthersChangeMeanwhile) {
  uint64_t word = 0;
  Bitmap map(&word, 64);
  std::atomic<bool> over = false;
  std::thread other([&] {
    for (int i = 0; i < 20'000'000; ++i) {
      map.set(0);
      map.clear(0);
    }
    over = true;
  });
  int bad = 0;
  while (!over) {
    const Bitmap::Stretch stretch = map.stretch(0, 64);
    if (stretch.end != (stretch.set ? 1u : 64u)) ++bad;
  }
  other.join();
  EXPECT_EQ(bad, 0);
}

}  // namespace
}  // namespace snow::exchange
