// What a host must be told to fetch an image: its id, its size, who has it. Goes from host to host
// as JSON in the calls of vm/, and lies beside the cache file for the daemon that comes next.
//
// Plain values; const functions may run at the same time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "exchange/core/types.h"

namespace snow::exchange {

inline constexpr uint64_t kMaxImageBytes = uint64_t{1} << 43;  // 8 TiB: 2^31 pages

using ImageId = std::array<std::byte, 16>;  // random; in JSON 32 hex digits

ImageId random_image_id();
std::string to_text(const ImageId& id);
Result<ImageId> image_id_from(std::string_view text);  // Code::invalid

// The last page of an image whose size is no multiple is filled with zeros on the wire.
[[nodiscard]] constexpr uint32_t pages_of(uint64_t size_bytes) {
  return static_cast<uint32_t>((size_bytes + kPageBytes - 1) / kPageBytes);
}
[[nodiscard]] constexpr uint64_t offset_of(uint32_t page) { return uint64_t{page} * kPageBytes; }

// An image's UDP group. The key seals its packets (AES-128-GCM); who has the descriptor has it.
struct MulticastGroup {
  std::string address;  // IPv4, 224.0.0.0/4
  uint16_t port = 0;
  std::array<std::byte, 16> key{};
  bool operator==(const MulticastGroup&) const = default;
};

struct Descriptor {
  ImageId id{};
  uint64_t size_bytes = 0;
  std::string origin;      // host id
  std::string origin_key;  // its public key, PEM: announcements of bursts are signed with the
                           // private one. Empty: what comes by multicast is not believed.
  std::optional<MulticastGroup> multicast;
  std::vector<Run> hot;  // sorted: what the first clone's host demanded; fetched ahead of need
  bool operator==(const Descriptor&) const = default;
};

inline constexpr size_t kMaxHotRanges = 65536;

nlohmann::json to_json(const Descriptor& descriptor);
// Everything is checked (Code::invalid): sizes within kMaxImageBytes, ranges within the image, the
// group's address a multicast one.
Result<Descriptor> descriptor_from_json(const nlohmann::json& json);

}  // namespace snow::exchange
