#include "api/frame.h"

#include <sys/socket.h>

namespace snow {
namespace {
constexpr size_t kHeaderBytes = 5;
}

std::string encode_frame(Channel channel, std::string_view bytes) {
  const auto size = static_cast<uint32_t>(bytes.size());
  std::string frame;
  frame.reserve(kHeaderBytes + bytes.size());
  frame.push_back(static_cast<char>(channel));
  for (int shift = 24; shift >= 0; shift -= 8) frame.push_back(static_cast<char>(size >> shift));
  frame.append(bytes);
  return frame;
}

Result<std::optional<Frame>> FrameReader::next() {
  if (buffer_.size() < kHeaderBytes) return std::optional<Frame>{};
  const auto channel = static_cast<uint8_t>(buffer_[0]);
  size_t size = 0;
  for (size_t i = 1; i < kHeaderBytes; ++i) size = size << 8 | static_cast<uint8_t>(buffer_[i]);
  if (channel > static_cast<uint8_t>(Channel::control) || size > kMaxFrameBytes) {
    return fail(Code::corrupt, "stream: channel {} with {} bytes is not a frame of {}", channel,
                size, kStreamProtocol);
  }
  if (buffer_.size() < kHeaderBytes + size) return std::optional<Frame>{};
  Frame frame{static_cast<Channel>(channel), buffer_.substr(kHeaderBytes, size)};
  buffer_.erase(0, kHeaderBytes + size);
  return std::optional<Frame>(std::move(frame));
}

Result<void> send_frame(int fd, Channel channel, std::string_view bytes) {
  const std::string frame = encode_frame(channel, bytes);
  std::string_view left = frame;
  while (!left.empty()) {
    const ssize_t sent = ::send(fd, left.data(), left.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return fail_errno(Code::unavailable, "stream: the other side is gone");
    left.remove_prefix(static_cast<size_t>(sent));
  }
  return {};
}

}  // namespace snow
