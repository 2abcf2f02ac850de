#include "guest/channel/message.h"

#include <gtest/gtest.h>

namespace snow::channel {
namespace {

std::string hex(std::string_view bytes) {
  static const char* digits = "0123456789abcdef";
  std::string out;
  for (const char c : bytes) {
    out += digits[static_cast<uint8_t>(c) >> 4];
    out += digits[static_cast<uint8_t>(c) & 15];
  }
  return out;
}

std::vector<Message> read_all(FrameReader& reader, std::string_view bytes) {
  std::vector<Message> messages;
  reader.feed(bytes, messages);
  return messages;
}

TEST(Crc32c, MatchesRfc3720) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(Cobs, MatchesThePapersExamples) {
  EXPECT_EQ(hex(cobs_encode("")), "01");
  EXPECT_EQ(hex(cobs_encode(std::string(1, '\0'))), "0101");
  EXPECT_EQ(hex(cobs_encode(std::string("\x11\x22\x00\x33", 4))), "0311220233");
  EXPECT_EQ(hex(cobs_encode(std::string("\x11\x00\x00\x00", 4))), "0211010101");
  // 254 bytes without a zero are one full block and nothing after it.
  EXPECT_EQ(cobs_encode(std::string(254, 'x')), "\xff" + std::string(254, 'x'));
  EXPECT_EQ(cobs_encode(std::string(255, 'x')), "\xff" + std::string(254, 'x') + "\x02x");
}

TEST(Fields, AreSortedKeysAndValues) {
  EXPECT_EQ(hex(encode_fields({{"b", "xy"}, {"a", ""}})),
            "01610000000001620200000078"
            "79");
  EXPECT_EQ(decode_fields(""), Fields{});
}

TEST(Fields, RefuseWhatIsMalformed) {
  const std::string good = encode_fields({{"key", "value"}});
  EXPECT_TRUE(decode_fields(good));
  for (size_t size = 1; size < good.size(); ++size) {
    EXPECT_FALSE(decode_fields(good.substr(0, size))) << "cut to " << size;
  }
  EXPECT_FALSE(decode_fields(good + good)) << "a key twice";
  EXPECT_FALSE(decode_fields(good + encode_fields({{"a", ""}}))) << "keys out of order";
  EXPECT_FALSE(decode_fields(std::string(5, '\0'))) << "an empty key";
  EXPECT_FALSE(decode_fields(std::string("\x01k\xff\xff\xff\xff", 6))) << "a huge value";
}

TEST(Fields, KeepTheirLimits) {
  EXPECT_TRUE(decode_fields(encode_fields({{"k", std::string(kMaxFieldBytes, 'x')}})));
  EXPECT_FALSE(decode_fields(encode_fields({{"k", std::string(kMaxFieldBytes + 1, 'x')}})));
  const std::string half(30 * 1024, 'x');
  EXPECT_FALSE(decode_fields(encode_fields({{"a", half}, {"b", half}})));
}

TEST(Fields, OneCanBeReadFromTheEncodedForm) {
  const std::string payload = encode_fields({{"a", "1"}, {"ab", ""}, {"b", "three"}});
  EXPECT_EQ(field_in(payload, "a"), "1");
  EXPECT_EQ(field_in(payload, "b"), "three");
  for (const char* key : {"ab", "c", ""}) EXPECT_EQ(field_in(payload, key), "") << key;
  for (size_t size = 0; size < payload.size(); ++size) {
    EXPECT_EQ(field_in(payload.substr(0, size), "b"), "") << "cut after " << size;
  }
}

TEST(Fields, NumbersAreWholeOrMissing) {
  const Fields fields = {
      {"n", "-12"}, {"junk", "12x"}, {"empty", ""}, {"big", "9223372036854775808"}};
  EXPECT_EQ(number_field(fields, "n"), -12);
  for (const char* key : {"junk", "empty", "big", "missing"}) {
    EXPECT_FALSE(number_field(fields, key)) << key;
  }
  EXPECT_EQ(field(fields, "missing"), "");
}

TEST(Message, HasTheDocumentedBytes) {
  const Message message{Type::data, 0x01020304, std::string("\x01hi", 3)};
  const std::string bytes = encode_message(message);
  EXPECT_EQ(hex(bytes.substr(0, 9)), "012104030201016869");
  EXPECT_EQ(bytes.size(), 13u);
  const auto again = decode_message(bytes);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->type, Type::data);
  EXPECT_EQ(again->stream, 0x01020304u);
  EXPECT_EQ(again->payload, message.payload);
}

TEST(Message, RefusesEveryFlippedBit) {
  const std::string good = encode_message({Type::call, 7, "payload"});
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(decode_message(bad)) << "bit " << bit;
  }
}

TEST(Message, RefusesUnknownTypesAndTooLongPayloads) {
  EXPECT_FALSE(known_type(0));
  EXPECT_FALSE(known_type(200));
  EXPECT_FALSE(decode_message(encode_message({static_cast<Type>(200), 0, ""})));
  EXPECT_TRUE(decode_message(encode_message({Type::data, 0, std::string(kMaxPayload, 'x')})));
  EXPECT_FALSE(decode_message(encode_message({Type::data, 0, std::string(kMaxPayload + 1, 'x')})));
}

TEST(FrameReader, FindsTheNextFrameAfterACut) {
  const std::string frame = encode_frame({Type::ask, 0, "abc"});
  FrameReader reader;
  EXPECT_EQ(read_all(reader, frame.substr(0, frame.size() / 2) + frame).size(), 0u);
  EXPECT_EQ(reader.dropped(), 1u);
  EXPECT_EQ(read_all(reader, frame).size(), 1u);
  // A leading zero byte ends what was cut.
  EXPECT_EQ(read_all(reader, frame.substr(0, 3) + std::string(1, '\0') + frame).size(), 1u);
  EXPECT_EQ(reader.dropped(), 2u);
}

TEST(FrameReader, IgnoresEmptyFrames) {
  FrameReader reader;
  EXPECT_TRUE(read_all(reader, std::string(100, '\0')).empty());
  EXPECT_EQ(reader.dropped(), 0u);
}

TEST(FrameReader, DropsAnEndlessFrameWithoutHoldingIt) {
  FrameReader reader;
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(read_all(reader, std::string(64 * 1024, 'x')).empty());
  const std::string end(1, '\0');
  EXPECT_EQ(read_all(reader, end + encode_frame({Type::ask, 0, ""})).size(), 1u);
  EXPECT_EQ(reader.dropped(), 1u);
}

TEST(FrameReader, TakesTheLongestMessage) {
  const std::string payload(kMaxPayload, 'x');  // no zero: the longest encoding
  FrameReader reader;
  const auto messages = read_all(reader, encode_frame({Type::data, 1, payload}));
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].payload, payload);
}

TEST(FrameReader, TellsAnotherVersionFromDamage) {
  std::string bytes = encode_message({Type::ask, 0, ""});
  bytes.resize(bytes.size() - 4);
  bytes[0] = 2;
  const uint32_t crc = crc32c(bytes);
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>((crc >> (8 * i)) & 0xff));
  FrameReader reader;
  EXPECT_TRUE(read_all(reader, cobs_encode(bytes) + std::string(1, '\0')).empty());
  EXPECT_EQ(reader.dropped(), 1u);
  EXPECT_EQ(reader.foreign_versions(), 1u);
}

TEST(LocalReader, RefusesABadLengthAndABadMessage) {
  std::vector<Message> messages;
  EXPECT_FALSE(LocalReader().feed("\xff\xff\xff\x7f", messages));
  std::string bad = encode_local({Type::call, 1, "x"});
  bad.back() = static_cast<char>(bad.back() ^ 1);
  EXPECT_FALSE(LocalReader().feed(bad, messages));
  EXPECT_FALSE(LocalReader().feed(std::string(4, '\0'), messages));
  EXPECT_TRUE(messages.empty());
}

TEST(LocalReader, TakesBytesOneByOne) {
  const std::string bytes = encode_local({Type::call, 1, "x"}) + encode_local({Type::eof, 2, "\1"});
  LocalReader reader;
  std::vector<Message> messages;
  for (const char c : bytes) ASSERT_TRUE(reader.feed(std::string_view(&c, 1), messages));
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[1].type, Type::eof);
}

}  // namespace
}  // namespace snow::channel
