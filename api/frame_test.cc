#include "api/frame.h"

#include <gtest/gtest.h>

namespace snow {
namespace {

TEST(Frame, ComesBackWhateverTheCuts) {
  const std::string bytes = encode_frame(Channel::output, "hello") +
                            encode_frame(Channel::input, "") +
                            encode_frame(Channel::control, std::string(kMaxFrameBytes, 'x'));
  for (const size_t step : {size_t{1}, size_t{3}, size_t{70000}}) {
    FrameReader reader;
    std::vector<Frame> frames;
    for (size_t at = 0; at < bytes.size(); at += step) {
      reader.feed(std::string_view(bytes).substr(at, step));
      for (;;) {
        auto frame = reader.next();
        ASSERT_TRUE(frame);
        if (!*frame) break;
        frames.push_back(**frame);
      }
    }
    ASSERT_EQ(frames.size(), 3u);
    EXPECT_EQ(frames[0].channel, Channel::output);
    EXPECT_EQ(frames[0].bytes, "hello");
    EXPECT_EQ(frames[1].channel, Channel::input);
    EXPECT_EQ(frames[1].bytes, "");
    EXPECT_EQ(frames[2].bytes.size(), kMaxFrameBytes);
  }
}

TEST(Frame, LengthIsBigEndian) {
  EXPECT_EQ(encode_frame(Channel::error, "ab"), std::string("\2\0\0\0\2ab", 7));
}

TEST(Frame, RefusesUnknownChannelsAndOverlongFrames) {
  FrameReader unknown;
  unknown.feed(std::string_view("\4\0\0\0\0", 5));
  EXPECT_EQ(unknown.next().error().code, Code::corrupt);
  FrameReader overlong;
  overlong.feed(std::string_view("\0\0\1\0\1", 5));
  EXPECT_EQ(overlong.next().error().code, Code::corrupt);
}

}  // namespace
}  // namespace snow
