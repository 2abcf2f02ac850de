// The packets of an image's multicast group: sealed with AES-128-GCM under the group's key, and
// what is in them. docs/exchange-protocol.md has the tables. No I/O.
//
// Everybody who has the image's descriptor has the key. So a packet that opens says only that some
// holder sent it; that the pages are the origin's is told by the announcement's signature and the
// hashes in it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "exchange/core/types.h"
#include "exchange/descriptor.h"
#include "exchange/wire.h"

struct evp_cipher_ctx_st;
struct evp_pkey_st;

namespace snow::exchange {

inline constexpr size_t kPacketHeadBytes = 24;
inline constexpr size_t kPacketTagBytes = 16;
inline constexpr size_t kMaxPacketBytes = 1472;  // one Ethernet frame
inline constexpr size_t kFragmentHeadBytes = 8;
inline constexpr size_t kFragmentBytes =
    kMaxPacketBytes - kPacketHeadBytes - kPacketTagBytes - kFragmentHeadBytes;
// Of a page's body of so many bytes.
constexpr size_t fragments_of(size_t body_bytes) {
  return (body_bytes + kFragmentBytes - 1) / kFragmentBytes;
}
inline constexpr size_t kFragmentsPerPage = fragments_of(kPageBytes);

using GroupKey = std::array<std::byte, 16>;

// A host's key for announcements, and another's public one. Thread-safe.
class SigningKey {
 public:
  static Result<SigningKey> from_private_file(const std::string& pem_file);
  static Result<SigningKey> from_public_pem(const std::string& pem);
  [[nodiscard]] std::string public_pem() const;
  // At most 128 bytes. Not with a public key.
  [[nodiscard]] Result<std::vector<std::byte>> sign(wire::Bytes text) const;
  [[nodiscard]] bool verify(wire::Bytes text, wire::Bytes signature) const;
  // A group's key from the private one: the same after a restart.
  [[nodiscard]] GroupKey group_key(const ImageId& image) const;

 private:
  std::shared_ptr<evp_pkey_st> key_;
  std::string secret_;  // what group keys are made from
};

// Where a packet stands among its sender's: `session` is new at each start of a sender.
struct PacketNumber {
  uint64_t session = 0;
  uint32_t counter = 0;
};

// Seals or opens the packets of one group. One thread at a time.
class Sealer {
 public:
  Sealer(const GroupKey& key, const ImageId& image);
  ~Sealer();
  Sealer(Sealer&&) noexcept;
  Sealer(const Sealer&) = delete;

  // No two packets of a group may have the same number.
  void seal(const PacketNumber& number, wire::Bytes content, wire::Buffer& packet);
  // Nothing: not a packet of this group and version, or not whole. The content lies in `content`.
  std::optional<PacketNumber> open(wire::Bytes packet, wire::Buffer& content);

 private:
  evp_cipher_ctx_st* seal_ = nullptr;
  evp_cipher_ctx_st* open_ = nullptr;
  ImageId image_;
};

// What a burst will bring. Pages whose hash is that of a page of zeros are not sent.
struct Announcement {
  uint32_t burst = 0;
  Run run;  // at most kMaxRunPages
  std::array<wire::PageHash, kMaxRunPages> hashes{};
  // Of each page's body: kPageBytes, or of the LZ4 block that it is; 0: zeros.
  std::array<uint16_t, kMaxRunPages> sizes{};
  std::vector<std::byte> signature;
};
// What is signed: all of it, the session and the image.
void signed_text(const Announcement& announcement, const ImageId& image, uint64_t session,
                 wire::Buffer& out);
void encode(const Announcement& announcement, wire::Buffer& out);

// `pages`: those of announcement.run. Fills in their hashes and sizes; puts LZ4 blocks in the place
// of pages of which it saves a fragment.
void pack_burst(std::span<std::byte> pages, Announcement& announcement);

struct Fragment {
  uint32_t burst = 0;
  uint16_t page = 0;  // in the burst
  uint8_t part = 0;   // of the page's body
  wire::Bytes bytes;  // kFragmentBytes; of the last part what is left
};
// `bodies`: as pack_burst() leaves them.
Fragment fragment_of(const Announcement& announcement, uint16_t page, uint8_t part,
                     wire::Bytes bodies);
void encode(const Fragment& fragment, wire::Buffer& out);

// One of the two; neither: it is not well-formed.
struct PacketContent {
  std::optional<Announcement> announcement;
  std::optional<Fragment> fragment;
};
PacketContent parse_packet(wire::Bytes content);

}  // namespace snow::exchange
