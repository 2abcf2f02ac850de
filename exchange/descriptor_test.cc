#include "exchange/descriptor.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace snow::exchange {
namespace {

Descriptor sample() {
  Descriptor descriptor;
  descriptor.id = random_image_id();
  descriptor.size_bytes = 10 * kPageBytes + 1;
  descriptor.origin = "h0123456789ab";
  descriptor.origin_key = "-----BEGIN PUBLIC KEY-----\n";
  descriptor.multicast = MulticastGroup{"239.83.1.2", 7401, random_image_id()};
  descriptor.hot = {{0, 3}, {3, 1}, {10, 1}};
  return descriptor;
}

TEST(Descriptor, ComesBackFromItsJson) {
  const Descriptor descriptor = sample();
  const auto again = descriptor_from_json(nlohmann::json::parse(to_json(descriptor).dump()));
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(*again, descriptor);

  Descriptor plain;
  plain.size_bytes = 1;
  plain.origin = "h";
  EXPECT_EQ(descriptor_from_json(to_json(plain)).value(), plain);
}

TEST(Descriptor, WhatIsWrongIsRefused) {
  const auto refused = [](const char* field, const nlohmann::json& value) {
    auto json = to_json(sample());
    json[nlohmann::json::json_pointer(field)] = value;
    const auto result = descriptor_from_json(json);
    ASSERT_FALSE(result) << field << " " << value;
    EXPECT_EQ(result.error().code, Code::invalid);
  };
  refused("/id", "00");
  refused("/id", std::string(32, 'g'));
  refused("/id", 7);
  refused("/size", 0);
  refused("/size", kMaxImageBytes + 1);
  refused("/size", "big");
  refused("/origin", "");
  refused("/origin", std::string(1000, 'h'));
  refused("/multicast/group", "10.0.0.1");
  refused("/multicast/group", "nowhere");
  refused("/multicast/port", 0);
  refused("/multicast/port", 65536);
  refused("/multicast/key", "ab");
  refused("/hot", {1});
  refused("/hot", {0, 0});
  refused("/hot", {0, 12});
  refused("/hot", {11, 1});
  refused("/hot", {5, 2, 6, 1});
  EXPECT_FALSE(descriptor_from_json(nlohmann::json()));
  EXPECT_FALSE(descriptor_from_json({1, 2}));
}

}  // namespace
}  // namespace snow::exchange
