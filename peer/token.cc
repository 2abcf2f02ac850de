#include "peer/token.h"

#include <algorithm>
#include <cstring>

#include "peer/bytes.h"
#include "peer/certificate.h"

namespace snow::peer {
namespace {

constexpr std::string_view kPrefix = "snow1-";
constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz234567";
constexpr size_t kChecksumBytes = 4;
constexpr size_t kMaxTokenText = 2048;

tl::unexpected<Error> no_token() {
  return fail(Code::denied,
              "this is no join token, or a part of it is missing or mistyped; copy it whole from "
              "the host that made it");
}

std::string checksum(std::span<const std::byte> bytes) {
  return sha256_hex({reinterpret_cast<const char*>(bytes.data()), bytes.size()})
      .substr(0, 2 * kChecksumBytes);
}

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<int>(byte));
  return text;
}

}  // namespace

std::string to_base32(std::span<const std::byte> bytes) {
  std::string text;
  uint32_t bits = 0;
  unsigned count = 0;
  for (const std::byte byte : bytes) {
    bits = bits << 8 | std::to_integer<uint32_t>(byte);
    for (count += 8; count >= 5; count -= 5) text += kLetters[bits >> (count - 5) & 31];
  }
  if (count > 0) text += kLetters[bits << (5 - count) & 31];
  return text;
}

Result<std::vector<std::byte>> from_base32(std::string_view text) {
  std::vector<std::byte> bytes;
  uint32_t bits = 0;
  unsigned count = 0;
  for (const char c : text) {
    const size_t value = kLetters.find(c);
    if (value == std::string_view::npos) return fail(Code::invalid, "not base32: '{}'", c);
    bits = bits << 5 | static_cast<uint32_t>(value);
    count += 5;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<std::byte>(bits >> count));
    }
  }
  if (count >= 5 || (bits & ((1u << count) - 1)) != 0) {
    return fail(Code::invalid, "not base32: it ends early");
  }
  return bytes;
}

Result<std::string> encode_token(const Token& token) {
  if (token.addresses.empty() || token.addresses.size() > kMaxTokenAddresses) {
    return fail(Code::invalid, "a join token holds 1 to {} addresses", kMaxTokenAddresses);
  }
  Writer out;
  out.number(token.addresses.size(), 1);
  for (const Address& address : token.addresses) {
    const std::string text = to_text(address);
    SNOW_TRY(parse_address(text));
    out.number(text.size(), 1);
    out.text(text);
  }
  out.raw(token.ca_hash);
  out.raw(token.secret);
  auto bytes = out.take();
  for (const std::string sum = checksum(bytes); const size_t i : {0, 1, 2, 3}) {
    bytes.push_back(static_cast<std::byte>(std::stoul(sum.substr(2 * i, 2), nullptr, 16)));
  }
  return std::string(kPrefix) + to_base32(bytes);
}

Result<Token> decode_token(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return no_token();
  text = text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
  if (text.size() > kMaxTokenText) return no_token();
  std::string small(text);
  for (char& c : small) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (!small.starts_with(kPrefix)) return no_token();
  const auto bytes = from_base32(std::string_view(small).substr(kPrefix.size()));
  if (!bytes || bytes->size() < kChecksumBytes) return no_token();
  const std::span<const std::byte> body(bytes->data(), bytes->size() - kChecksumBytes);
  if (checksum(body) != hex(std::span(*bytes).last(kChecksumBytes))) return no_token();
  Reader in(body);
  Token token;
  const auto count = in.number(1);
  if (!count || *count == 0 || *count > kMaxTokenAddresses) return no_token();
  for (uint64_t i = 0; i < *count; ++i) {
    const auto address_text = in.short_text();
    if (!address_text) return no_token();
    auto address = parse_address(*address_text);
    if (!address) return no_token();
    token.addresses.push_back(*std::move(address));
  }
  const auto hash = in.raw(token.ca_hash.size());
  const auto secret = in.raw(token.secret.size());
  if (!hash || !secret || !in.rest().empty()) return no_token();
  std::copy(hash->begin(), hash->end(), token.ca_hash.begin());
  std::copy(secret->begin(), secret->end(), token.secret.begin());
  return token;
}

}  // namespace snow::peer
