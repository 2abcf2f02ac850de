// The frames of an upgraded connection (exec, console), both directions: u8 channel | u32 length
// (big endian) | bytes. api/openapi.yaml documents them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace snow {

inline constexpr size_t kMaxFrameBytes = 65536;  // of `bytes`
inline constexpr const char* kStreamProtocol = "snow-stream";

enum class Channel : uint8_t { input = 0, output = 1, error = 2, control = 3 };

struct Frame {
  Channel channel = Channel::input;
  std::string bytes;
};

std::string encode_frame(Channel channel, std::string_view bytes);  // at most kMaxFrameBytes

// Takes bytes as they come and gives whole frames; holds at most what was fed. Not thread-safe.
class FrameReader {
 public:
  void feed(std::string_view bytes) { buffer_.append(bytes); }
  // The next whole frame, nullopt if there is none yet. Code::corrupt: an unknown channel or an
  // overlong frame; the connection is of no use any more.
  Result<std::optional<Frame>> next();

 private:
  std::string buffer_;
};

// Sends all of it on a blocking socket, without SIGPIPE. Code::unavailable: the peer is gone.
Result<void> send_frame(int fd, Channel channel, std::string_view bytes);

}  // namespace snow
