// Any bytes as what a peer may send: no crash, and what is accepted comes back. The first byte
// chooses the parser.
#include <cstdlib>
#include <string_view>

#include "peer/calls.h"
#include "peer/certificate.h"
#include "peer/frame.h"
#include "peer/join.h"
#include "peer/json_text.h"
#include "peer/token.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace snow;
using namespace snow::peer;

void check(bool holds) {
  if (!holds) std::abort();
}

bool same(const std::vector<std::byte>& a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

// A stream of frames, as Connection reads it.
void frames(std::span<const std::byte> bytes) {
  while (bytes.size() >= kHeaderBytes) {
    const auto header = decode_header(bytes.first<kHeaderBytes>(), kMaxHelloBytes);
    if (!header) return;
    check(header->payload_bytes <= kMaxHelloBytes);
    bytes = bytes.subspan(kHeaderBytes);
    if (bytes.size() < header->payload_bytes) return;
    const auto payload = bytes.first(header->payload_bytes);
    if (const auto hello = decode_hello(payload); hello && hello->version == kVersion) {
      check(same(encode_hello(*hello), payload));
    }
    check(decode_error(payload).message.size() <= kMaxErrorText);
    bytes = bytes.subspan(header->payload_bytes);
  }
}

void calls(std::span<const std::byte> bytes) {
  if (const auto call = decode_call(bytes)) {
    const auto again = decode_call(encode_call(call->method, call->argument.json));
    check(again && again->method == call->method);
  }
  if (const auto answer = decode_answer(bytes)) {
    check(decode_answer(encode_answer(answer->json)).has_value());
  }
}

void token(std::string_view text) {
  if (const auto bytes = from_base32(text)) check(to_base32(*bytes) == text);
  if (const auto known = decode_token(text)) {
    check(decode_token(encode_token(*known).value()).value() == *known);
  }
}

void join(std::span<const std::byte> bytes) {
  if (const auto request = decode_join_request(bytes)) {
    check(same(encode(*request), bytes));
    (void)key_of_request(request->request_pem);
  }
  if (const auto answer = decode_join_answer(bytes)) {
    check(same(encode(*answer), bytes));
    (void)parse_certificate(answer->certificate_pem, "fuzz");
    (void)parse_certificate(answer->ca_pem, "fuzz");
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 6) {
    case 0:
      frames(bytes);
      break;
    case 1:
      calls(bytes);
      break;
    case 2:
      token(text);
      break;
    case 3:
      join(bytes);
      break;
    case 4:
      (void)key_of_request(text);
      break;
    default:
      if (const auto json = parse_json(text)) check(parse_json(to_text(*json)).has_value());
  }
  return 0;
}
