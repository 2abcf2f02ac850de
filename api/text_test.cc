#include "api/text.h"

#include <gtest/gtest.h>

#include "base/names.h"

namespace snow {
namespace {

TEST(Text, SizesAreReadAsPeopleWriteThem) {
  EXPECT_EQ(parse_size("memory", "4096").value(), 4096u);
  EXPECT_EQ(parse_size("memory", "512M").value(), 512u << 20);
  EXPECT_EQ(parse_size("memory", "512m").value(), 512u << 20);
  EXPECT_EQ(parse_size("memory", "1.5G").value(), 3u << 29);
  EXPECT_EQ(parse_size("memory", "2GiB").value(), uint64_t{2} << 30);
  EXPECT_EQ(parse_size("memory", "64kb").value(), 65536u);
  EXPECT_EQ(parse_size("memory", "0").value(), 0u);
  EXPECT_EQ(parse_size("memory", "4611686018427387903").error().code, Code::invalid);
  EXPECT_EQ(parse_size("memory", "9007199254740993").value(), 9007199254740993u);
}

TEST(Text, WhatIsNoSizeIsRefusedByName) {
  for (const char* bad : {"", "M", "-1", "+1", "1X", "1 G", ".5G", "1..5G", "1e3", "0x10", "1MM",
                          "999999999999T", "inf", "nan"}) {
    const auto result = parse_size("memory", bad);
    ASSERT_FALSE(result) << bad;
    EXPECT_EQ(result.error().code, Code::invalid) << bad;
    EXPECT_EQ(result.error().message.find("memory"), 0u) << result.error().message;
  }
}

TEST(Text, SizesArePrintedShort) {
  EXPECT_EQ(format_size(0), "0");
  EXPECT_EQ(format_size(1023), "1023");
  EXPECT_EQ(format_size(512u << 20), "512M");
  EXPECT_EQ(format_size(3u << 29), "1.5G");
}

TEST(Text, NumbersHaveBounds) {
  EXPECT_EQ(parse_number("count", "8", 1, 8).value(), 8);
  EXPECT_EQ(parse_number("count", "-1", -1, 8).value(), -1);
  for (const char* bad : {"", "9", "0", "1x", " 1", "99999999999999999999", "+1"}) {
    EXPECT_FALSE(parse_number("count", bad, 1, 8)) << bad;
  }
}

TEST(Text, KeyAndValue) {
  EXPECT_EQ(parse_key_value("--param", "a=b=c").value(),
            std::pair(std::string("a"), std::string("b=c")));
  EXPECT_EQ(parse_key_value("--param", "a=").value().second, "");
  for (const char* bad : {"", "a", "=b", "a b=c"})
    EXPECT_FALSE(parse_key_value("--param", bad)) << bad;
}

TEST(Text, NamesAreSafeAsFileNames) {
  EXPECT_TRUE(check_name("VM", "web-1.x_Y"));
  for (const char* bad : {"", ".", "..", "-a", "_a", "a/b", "a b", "\xc3\xa4"})
    EXPECT_FALSE(check_name("VM", bad)) << bad;
  EXPECT_TRUE(check_name("VM", std::string(63, 'a')));
  EXPECT_FALSE(check_name("VM", std::string(64, 'a')));
}

TEST(Text, Booleans) {
  EXPECT_TRUE(parse_bool("all", "true").value());
  EXPECT_FALSE(parse_bool("all", "0").value());
  EXPECT_EQ(parse_bool("all", "maybe").error().code, Code::invalid);
}

}  // namespace
}  // namespace snow
