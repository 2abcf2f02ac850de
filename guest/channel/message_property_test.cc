// What is encoded decodes to the same, however it is cut; garbage between frames costs no frame
// that follows it.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "guest/channel/message.h"

namespace snow::channel {
namespace {

rc::Gen<std::string> bytes_up_to(int size) {
  return rc::gen::mapcat(rc::gen::inRange(0, size + 1), [](int length) {
    // Zeros are what COBS is about: every other byte is one.
    return rc::gen::container<std::string>(
        static_cast<size_t>(length),
        rc::gen::oneOf(rc::gen::just('\0'), rc::gen::arbitrary<char>()));
  });
}

rc::Gen<Message> any_message() {
  return rc::gen::build<Message>(
      rc::gen::set(&Message::type, rc::gen::element(Type::hello, Type::data, Type::resume)),
      rc::gen::set(&Message::stream, rc::gen::arbitrary<uint32_t>()),
      rc::gen::set(&Message::payload, bytes_up_to(700)));
}

bool same(const std::vector<Message>& a, const std::vector<Message>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.type == y.type && x.stream == y.stream && x.payload == y.payload;
  });
}

// Feeds `bytes` in pieces of the sizes given, over and over.
template <class Feed>
void feed_in_pieces(std::string_view bytes, const std::vector<int>& sizes, Feed feed) {
  for (size_t i = 0; !bytes.empty(); ++i) {
    const size_t size = sizes.empty() ? 1 : static_cast<size_t>(sizes[i % sizes.size()]);
    feed(bytes.substr(0, size));
    bytes.remove_prefix(std::min(size, bytes.size()));
  }
}

rc::Gen<std::vector<int>> sizes() {
  return rc::gen::container<std::vector<int>>(rc::gen::inRange(1, 400));
}

TEST(MessageProperty, FieldsComeBack) {
  EXPECT_TRUE(rc::check([] {
    const auto pairs = *rc::gen::container<std::vector<std::pair<std::string, std::string>>>(
        rc::gen::pair(bytes_up_to(40), bytes_up_to(300)));
    Fields fields;
    for (const auto& [key, value] : pairs) {
      if (!key.empty()) fields[key] = value;
    }
    const std::string encoded = encode_fields(fields);
    RC_PRE(encoded.size() <= kMaxPayload);
    RC_ASSERT(decode_fields(encoded) == fields);
  }));
}

TEST(MessageProperty, FramesComeBackHoweverTheyAreCut) {
  EXPECT_TRUE(rc::check([] {
    const auto messages = *rc::gen::container<std::vector<Message>>(any_message());
    std::string bytes;
    for (const Message& message : messages) {
      const std::string frame = encode_frame(message);
      RC_ASSERT(frame.find('\0') == frame.size() - 1);
      bytes += frame;
    }
    FrameReader reader;
    std::vector<Message> got;
    feed_in_pieces(bytes, *sizes(), [&](std::string_view piece) { reader.feed(piece, got); });
    RC_ASSERT(same(messages, got));
    RC_ASSERT(reader.dropped() == 0u);
  }));
}

TEST(MessageProperty, LocalMessagesComeBackHoweverTheyAreCut) {
  EXPECT_TRUE(rc::check([] {
    const auto messages = *rc::gen::container<std::vector<Message>>(any_message());
    std::string bytes;
    for (const Message& message : messages) bytes += encode_local(message);
    LocalReader reader;
    std::vector<Message> got;
    feed_in_pieces(bytes, *sizes(),
                   [&](std::string_view piece) { RC_ASSERT(reader.feed(piece, got)); });
    RC_ASSERT(same(messages, got));
  }));
}

TEST(MessageProperty, GarbageCostsNoFrameThatFollows) {
  EXPECT_TRUE(rc::check([] {
    const Message message = *any_message();
    const std::string garbage = *bytes_up_to(2000);
    FrameReader reader;
    std::vector<Message> got;
    reader.feed(garbage + std::string(1, '\0') + encode_frame(message), got);
    RC_ASSERT(!got.empty());
    RC_ASSERT(same({got.back()}, {message}));
  }));
}

}  // namespace
}  // namespace snow::channel
