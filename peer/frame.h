// What goes over a connection, as bytes: frames, hello, error. docs/peer-protocol.md has the
// tables. Pure functions; nothing here does I/O.
//
//   frame  u32 length (LE) of what follows | u8 type | payload
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace snow::peer {

inline constexpr uint16_t kVersion = 1;
inline constexpr size_t kHeaderBytes = 5;
inline constexpr size_t kMaxFrameBytes = size_t{64} << 20;  // payload; a service may have less
inline constexpr size_t kMaxHelloBytes = 1024;              // payload, until both have said hello
inline constexpr size_t kMaxStrangerBytes = 64 * 1024;      // payload from who has no certificate
inline constexpr size_t kMaxErrorText = 4096;
inline constexpr size_t kMaxNameBytes = 64;  // host id, service, method

// Types below 16 are the connection's own; a service numbers its own from 16.
inline constexpr uint8_t kHello = 1;
inline constexpr uint8_t kError = 2;
inline constexpr uint8_t kEnd = 3;  // streams: nothing more comes from this side
inline constexpr uint8_t kFirstFree = 16;

struct Frame {
  uint8_t type = 0;
  std::vector<std::byte> payload;
};

struct Header {
  uint8_t type = 0;
  size_t payload_bytes = 0;
};

std::array<std::byte, kHeaderBytes> encode_header(uint8_t type, size_t payload_bytes);
// Code::corrupt for a length of 0 or a payload over `limit`.
Result<Header> decode_header(std::span<const std::byte, kHeaderBytes> bytes, size_t limit);

struct Hello {
  uint16_t version = kVersion;
  std::string host;     // the sender's id; empty for a host that wants to join
  std::string service;  // that the caller wants; the answer repeats it
};

std::vector<std::byte> encode_hello(const Hello& hello);  // the payload
// Code::corrupt if it is none. Of a version that is not ours only `version` is set: what follows
// it may look different there.
Result<Hello> decode_hello(std::span<const std::byte> payload);

std::vector<std::byte> encode_error(
    const Error& error);  // the payload; the text is cut at its limit
// Never fails: what cannot be read is an internal error that says so.
Error decode_error(std::span<const std::byte> payload);

// 1 to kMaxNameBytes of a-z A-Z 0-9 . _ -
bool is_plain_name(std::string_view name);

}  // namespace snow::peer
