// A join token: what a new host needs to find the cluster, to know it for the right one, and to be
// let in. A text to copy and paste:
//
//   "snow1-" and in base32 (RFC 4648, small letters, no padding):
//   u8 count, that many addresses (u8 length, "IP:PORT") | SHA-256 of the CA's certificate |
//   16 bytes secret | the first 4 bytes of the SHA-256 of all before
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "peer/address.h"
#include "peer/credentials.h"

namespace snow::peer {

inline constexpr size_t kSecretBytes = 16;
inline constexpr size_t kMaxTokenAddresses = 8;

using Secret = std::array<std::byte, kSecretBytes>;

struct Token {
  std::vector<Address> addresses;  // of the authority, to be tried in this order
  Sha256 ca_hash{};
  Secret secret{};
  bool operator==(const Token&) const = default;
};

// 1 to kMaxTokenAddresses addresses, else Code::invalid.
Result<std::string> encode_token(const Token& token);
// Blanks around it and capital letters are forgiven; anything else is Code::denied.
Result<Token> decode_token(std::string_view text);

std::string to_base32(std::span<const std::byte> bytes);
// Code::invalid for other characters, impossible lengths, and bits that are left over.
Result<std::vector<std::byte>> from_base32(std::string_view text);

}  // namespace snow::peer
