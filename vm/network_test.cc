#include "vm/network.h"

#include <gtest/gtest.h>

namespace snow {
namespace {

TEST(MacPool, AddressesAreOursAndDiffer) {
  MacPool pool;
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string address = pool.take();
    EXPECT_EQ(address.size(), 17u);
    EXPECT_EQ(address.substr(0, 6), "52:54:");
    EXPECT_TRUE(seen.insert(address).second);
    EXPECT_FALSE(pool.claim(address));
  }
}

TEST(MacPool, AClaimedAddressIsTakenUntilGivenBack) {
  MacPool pool;
  EXPECT_TRUE(pool.claim("52:54:00:12:34:56"));
  EXPECT_EQ(pool.claim("52:54:00:12:34:56").error().code, Code::exists);
  pool.give_back("52:54:00:12:34:56");
  EXPECT_TRUE(pool.claim("52:54:00:12:34:56"));
}

TEST(MacPool, WhatIsNoAddressOfOursIsRefused) {
  MacPool pool;
  for (const char* bad : {"", "52:54", "53:54:00:12:34:56", "52:54:00:12:34:5g",
                          "52:54:00:12:34:567", "52:54:00-12:34:56", "52:54:00:12:34:5A"}) {
    EXPECT_EQ(pool.claim(bad).error().code, Code::invalid) << bad;
  }
}

}  // namespace
}  // namespace snow
