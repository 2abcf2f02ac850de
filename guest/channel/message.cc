// The wire format of the guest channel: fields, messages, COBS frames and length-prefixed local
// messages. Pure functions and two small buffers; nothing here does I/O or depends on the host.
// Every reader bounds what it holds before it holds it.
#include "guest/channel/message.h"

#include <array>
#include <charconv>
#include <cstring>

namespace snow::channel {

namespace {

constexpr size_t kHeaderBytes = 6;   // version, type, stream
constexpr size_t kTrailerBytes = 4;  // CRC
constexpr size_t kMaxMessageBytes = kHeaderBytes + kMaxPayload + kTrailerBytes;
// COBS adds one byte for each 254 begun.
constexpr size_t kMaxFrameBytes = kMaxMessageBytes + kMaxMessageBytes / 254 + 1;

// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), as in RFC 3720 appendix B.4.
constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

uint32_t get_u32(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  return value;
}

void put_u32(std::string& bytes, uint32_t value) {
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

// nullopt: a zero byte, or a block that promises more bytes than there are.
std::optional<std::string> cobs_decode(std::string_view in) {
  std::string out;
  out.reserve(in.size());
  while (!in.empty()) {
    const size_t code = static_cast<uint8_t>(in[0]);
    if (code == 0 || code > in.size()) return std::nullopt;
    const std::string_view block = in.substr(1, code - 1);
    if (block.find('\0') != std::string_view::npos) return std::nullopt;
    out.append(block);
    in.remove_prefix(code);
    if (code != 255 && !in.empty()) out.push_back('\0');
  }
  return out;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  return ~crc;
}

std::string cobs_encode(std::string_view in) {
  std::string out;
  out.reserve(in.size() + in.size() / 254 + 2);
  // Each block: its length + 1, then bytes without a zero. 254 bytes without a zero end a block
  // that stands for no zero.
  for (size_t at = 0;;) {
    const std::string_view rest = in.substr(at, 254);
    const size_t zero = rest.find('\0');
    const size_t length = zero == std::string_view::npos ? rest.size() : zero;
    out.push_back(static_cast<char>(length + 1));
    out.append(rest.substr(0, length));
    at += length;
    if (at == in.size()) return out;
    if (length < 254) ++at;  // the zero itself
  }
}

std::string encode_fields(const Fields& fields) {
  std::string out;
  for (const auto& [key, value] : fields) {
    out.push_back(static_cast<char>(key.size()));
    out += key;
    put_u32(out, static_cast<uint32_t>(value.size()));
    out += value;
  }
  return out;
}

std::optional<Fields> decode_fields(std::string_view payload) {
  if (payload.size() > kMaxPayload) return std::nullopt;
  Fields fields;
  std::string_view last;
  while (!payload.empty()) {
    const size_t key_size = static_cast<uint8_t>(payload[0]);
    if (key_size == 0 || payload.size() < 1 + key_size + 4) return std::nullopt;
    const std::string_view key = payload.substr(1, key_size);
    const size_t value_size = get_u32(payload.substr(1 + key_size, 4));
    payload.remove_prefix(1 + key_size + 4);
    if (value_size > kMaxFieldBytes || value_size > payload.size()) return std::nullopt;
    // One encoding for each set of fields: ascending, no key twice.
    if (!fields.empty() && key <= last) return std::nullopt;
    last = key;
    fields.emplace_hint(fields.end(), key, payload.substr(0, value_size));
    payload.remove_prefix(value_size);
  }
  return fields;
}

std::string_view field_in(std::string_view payload, std::string_view key) {
  while (!payload.empty()) {
    const size_t key_size = static_cast<uint8_t>(payload[0]);
    if (payload.size() < 1 + key_size + 4) return {};
    const std::string_view found = payload.substr(1, key_size);
    const size_t value_size = get_u32(payload.substr(1 + key_size, 4));
    payload.remove_prefix(1 + key_size + 4);
    if (value_size > payload.size()) return {};
    if (found == key) return payload.substr(0, value_size);
    payload.remove_prefix(value_size);
  }
  return {};
}

std::string_view field(const Fields& fields, std::string_view key) {
  const auto found = fields.find(key);
  return found == fields.end() ? std::string_view{} : std::string_view{found->second};
}

std::optional<int64_t> number_field(const Fields& fields, std::string_view key) {
  const std::string_view text = field(fields, key);
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

bool known_type(uint8_t type) {
  switch (static_cast<Type>(type)) {
    case Type::hello:
    case Type::prepared:
    case Type::ready:
    case Type::call:
    case Type::ask:
    case Type::prepare:
    case Type::resume:
    case Type::answer:
    case Type::open:
    case Type::data:
    case Type::eof:
    case Type::credit:
    case Type::closed:
    case Type::signal:
    case Type::resize:
    case Type::refused:
      return true;
  }
  return false;
}

std::string encode_message(const Message& message) {
  std::string out;
  out.reserve(kHeaderBytes + message.payload.size() + kTrailerBytes);
  out.push_back(static_cast<char>(kVersion));
  out.push_back(static_cast<char>(message.type));
  put_u32(out, message.stream);
  out += message.payload;
  put_u32(out, crc32c(out));
  return out;
}

namespace {

// The bytes are whole: right size and CRC, whatever the version says.
bool intact(std::string_view bytes) {
  if (bytes.size() < kHeaderBytes + kTrailerBytes || bytes.size() > kMaxMessageBytes) return false;
  const std::string_view body = bytes.substr(0, bytes.size() - kTrailerBytes);
  return crc32c(body) == get_u32(bytes.substr(body.size()));
}

std::optional<Message> decode_intact(std::string_view bytes) {
  const auto type = static_cast<uint8_t>(bytes[1]);
  if (static_cast<uint8_t>(bytes[0]) != kVersion || !known_type(type)) return std::nullopt;
  Message message;
  message.type = static_cast<Type>(type);
  message.stream = get_u32(bytes.substr(2));
  message.payload = bytes.substr(kHeaderBytes, bytes.size() - kHeaderBytes - kTrailerBytes);
  return message;
}

}  // namespace

std::optional<Message> decode_message(std::string_view bytes) {
  return intact(bytes) ? decode_intact(bytes) : std::nullopt;
}

std::string encode_frame(const Message& message) {
  std::string frame = cobs_encode(encode_message(message));
  frame.push_back('\0');
  return frame;
}

void FrameReader::feed(std::string_view bytes, std::vector<Message>& messages) {
  while (!bytes.empty()) {
    const size_t end = bytes.find('\0');
    const std::string_view part = bytes.substr(0, end);
    if (overlong_ || frame_.size() + part.size() > kMaxFrameBytes) {
      overlong_ = true;
      frame_.clear();
    } else {
      frame_.append(part);
    }
    if (end == std::string_view::npos) return;
    bytes.remove_prefix(end + 1);
    if (overlong_) {
      ++dropped_;
    } else if (!frame_.empty()) {  // an empty frame is a sender that starts afresh
      finish_frame(messages);
    }
    reset();
  }
}

void FrameReader::finish_frame(std::vector<Message>& messages) {
  const std::optional<std::string> bytes = cobs_decode(frame_);
  if (!bytes || !intact(*bytes)) {
    ++dropped_;
    return;
  }
  std::optional<Message> message = decode_intact(*bytes);
  if (message) {
    messages.push_back(std::move(*message));
    return;
  }
  ++dropped_;
  if (static_cast<uint8_t>((*bytes)[0]) != kVersion) ++foreign_;
}

std::string encode_local(const Message& message) {
  const std::string body = encode_message(message);
  std::string out;
  out.reserve(4 + body.size());
  put_u32(out, static_cast<uint32_t>(body.size()));
  return out += body;
}

bool LocalReader::feed(std::string_view bytes, std::vector<Message>& messages) {
  buffer_.append(bytes);
  std::string_view rest = buffer_;
  while (rest.size() >= 4) {
    const size_t size = get_u32(rest);
    if (size > kMaxMessageBytes) return false;
    if (rest.size() - 4 < size) break;
    std::optional<Message> message = decode_message(rest.substr(4, size));
    if (!message) return false;
    messages.push_back(std::move(*message));
    rest.remove_prefix(4 + size);
  }
  buffer_.erase(0, buffer_.size() - rest.size());
  return true;
}

}  // namespace snow::channel
