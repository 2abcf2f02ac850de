#include <gtest/gtest.h>

#include "peer/address.h"
#include "peer/frame.h"

namespace snow::peer {
namespace {

TEST(Frame, HeaderComesBack) {
  const auto bytes = encode_header(42, 70'000);
  const auto header = decode_header(bytes, kMaxFrameBytes);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->type, 42);
  EXPECT_EQ(header->payload_bytes, 70'000u);
}

TEST(Frame, EmptyPayloadAndTheLimit) {
  EXPECT_EQ(decode_header(encode_header(1, 0), 10)->payload_bytes, 0u);
  EXPECT_TRUE(decode_header(encode_header(1, 10), 10));
  EXPECT_EQ(decode_header(encode_header(1, 11), 10).error().code, Code::corrupt);
}

TEST(Frame, ALengthOfZeroIsNoFrame) {
  const std::array<std::byte, kHeaderBytes> zero{};
  EXPECT_EQ(decode_header(zero, 10).error().code, Code::corrupt);
}

TEST(Frame, HelloComesBack) {
  const auto hello = decode_hello(encode_hello({kVersion, "h0123456789ab", "pages"}));
  ASSERT_TRUE(hello);
  EXPECT_EQ(hello->version, kVersion);
  EXPECT_EQ(hello->host, "h0123456789ab");
  EXPECT_EQ(hello->service, "pages");
}

TEST(Frame, HelloIsExact) {
  const auto whole = encode_hello({kVersion, "h0123456789ab", "pages"});
  for (size_t cut = 0; cut < whole.size(); ++cut) {
    EXPECT_FALSE(decode_hello(std::span(whole).first(cut))) << cut;
  }
  auto longer = whole;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(decode_hello(longer));
  EXPECT_FALSE(decode_hello(encode_hello({kVersion, "h/../x", "pages"})));
  EXPECT_FALSE(decode_hello(encode_hello({kVersion, "h0123456789ab", ""})));
}

TEST(Frame, OfALaterVersionOnlyTheNumberIsRead) {
  auto bytes = encode_hello({9, "", "?!"});
  bytes.resize(bytes.size() + 40);
  const auto hello = decode_hello(bytes);
  ASSERT_TRUE(hello);
  EXPECT_EQ(hello->version, 9);
}

TEST(Frame, ErrorsKeepCodeAndText) {
  const Error error = decode_error(encode_error({Code::no_room, "full; try later"}));
  EXPECT_EQ(error.code, Code::no_room);
  EXPECT_EQ(error.message, "full; try later");
  EXPECT_EQ(decode_error({}).code, Code::internal);
  const std::array<std::byte, 2> unknown = {std::byte{200}, std::byte{'x'}};
  EXPECT_EQ(decode_error(unknown).code, Code::internal);
}

TEST(Address, ComesBack) {
  for (const char* text : {"10.0.0.7:7171", "[fd00::7]:65535", "127.0.0.1:1"}) {
    const auto address = parse_address(text);
    ASSERT_TRUE(address) << text;
    EXPECT_EQ(to_text(*address), text);
  }
}

TEST(Address, WhatIsNoneIsRefused) {
  for (const char* text : {"", ":", "10.0.0.7", "10.0.0.7:", "10.0.0.7:0", "10.0.0.7:65536",
                           "10.0.0.7:7x", "host:7171", "fd00::7:7171", "[]:1", "10.0.0.7:-1"}) {
    EXPECT_EQ(parse_address(text).error().code, Code::invalid) << text;
  }
}

TEST(Address, Loopback) {
  EXPECT_TRUE(is_loopback({"127.0.0.1", 0}));
  EXPECT_TRUE(is_loopback({"127.200.0.9", 1}));
  EXPECT_TRUE(is_loopback({"::1", 1}));
  EXPECT_TRUE(is_loopback({"::ffff:127.0.0.1", 1}));
  EXPECT_FALSE(is_loopback({"0.0.0.0", 1}));
  EXPECT_FALSE(is_loopback({"::ffff:10.0.0.1", 1}));
  EXPECT_FALSE(is_loopback({"10.127.0.1", 1}));
  EXPECT_FALSE(is_loopback({"nonsense", 1}));
}

}  // namespace
}  // namespace snow::peer
