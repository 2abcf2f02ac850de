#include "peer/frame.h"

#include <algorithm>

#include "peer/bytes.h"

namespace snow::peer {
namespace {

constexpr std::string_view kMagic = "SNOWPEER";

bool is_name_or_empty(std::string_view name) { return name.empty() || is_plain_name(name); }

}  // namespace

std::array<std::byte, kHeaderBytes> encode_header(uint8_t type, size_t payload_bytes) {
  const auto length = static_cast<uint32_t>(payload_bytes + 1);
  return {static_cast<std::byte>(length), static_cast<std::byte>(length >> 8),
          static_cast<std::byte>(length >> 16), static_cast<std::byte>(length >> 24),
          static_cast<std::byte>(type)};
}

Result<Header> decode_header(std::span<const std::byte, kHeaderBytes> bytes, size_t limit) {
  uint32_t length = 0;
  for (size_t i = 0; i < 4; ++i) length |= std::to_integer<uint32_t>(bytes[i]) << (8 * i);
  if (length == 0) return fail(Code::corrupt, "a frame without type; not a Thundersnow peer");
  if (length - 1 > limit) {
    return fail(Code::corrupt, "a frame of {} bytes, where {} are the limit", length - 1, limit);
  }
  return Header{std::to_integer<uint8_t>(bytes[4]), length - 1};
}

std::vector<std::byte> encode_hello(const Hello& hello) {
  Writer out;
  out.text(kMagic);
  out.number(hello.version, 2);
  out.number(hello.host.size(), 1);
  out.text(hello.host);
  out.number(hello.service.size(), 1);
  out.text(hello.service);
  return out.take();
}

Result<Hello> decode_hello(std::span<const std::byte> payload) {
  Reader in(payload);
  const auto magic = in.text(kMagic.size());
  const auto version = in.number(2);
  if (!magic || *magic != kMagic || !version) {
    return fail(Code::corrupt, "the first frame is no hello; not a Thundersnow peer");
  }
  Hello hello;
  hello.version = static_cast<uint16_t>(*version);
  if (hello.version != kVersion) return hello;
  const auto host = in.short_text();
  const auto service = in.short_text();
  if (!host || !service || !in.rest().empty() || !is_name_or_empty(*host) ||
      !is_plain_name(*service)) {
    return fail(Code::corrupt, "a malformed hello");
  }
  hello.host = *host;
  hello.service = *service;
  return hello;
}

std::vector<std::byte> encode_error(const Error& error) {
  Writer out;
  out.number(static_cast<uint64_t>(error.code), 1);
  out.text(std::string_view(error.message).substr(0, kMaxErrorText));
  return out.take();
}

Error decode_error(std::span<const std::byte> payload) {
  Reader in(payload);
  const auto number = in.number(1);
  const auto text = in.text(std::min(in.rest().size(), kMaxErrorText));
  if (!number || text->empty())
    return {Code::internal, "an error that the other side did not name"};
  const auto code = static_cast<Code>(*number);
  const bool known = code_from_name(code_name(code)) == code;
  return {known ? code : Code::internal, std::string(*text)};
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '_' || c == '-';
         });
}

}  // namespace snow::peer
