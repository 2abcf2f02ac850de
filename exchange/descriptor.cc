#include "exchange/descriptor.h"

#include <arpa/inet.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"

namespace snow::exchange {
namespace {

constexpr size_t kMaxKeyText = 4096;
constexpr size_t kMaxHostText = 128;

template <size_t N>
std::string hex_of(const std::array<std::byte, N>& bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    text += "0123456789abcdef"[std::to_integer<int>(byte) >> 4];
    text += "0123456789abcdef"[std::to_integer<int>(byte) & 15];
  }
  return text;
}

int hex_digit(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  return -1;
}

template <size_t N>
bool bytes_from(std::string_view text, std::array<std::byte, N>& into) {
  if (text.size() != 2 * N) return false;
  for (size_t i = 0; i < N; ++i) {
    const int high = hex_digit(text[2 * i]);
    const int low = hex_digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    into[i] = static_cast<std::byte>(high * 16 + low);
  }
  return true;
}

Result<MulticastGroup> group_from(const nlohmann::json& json) {
  MulticastGroup group;
  group.address = json.at("group").get<std::string>();
  in_addr address{};
  if (::inet_pton(AF_INET, group.address.c_str(), &address) != 1 ||
      !IN_MULTICAST(ntohl(address.s_addr))) {
    return fail(Code::invalid, "image descriptor: {:?} is no IPv4 multicast address",
                group.address);
  }
  const auto port = json.at("port").get<uint64_t>();
  if (port == 0 || port > 65535) {
    return fail(Code::invalid, "image descriptor: {} is no port", port);
  }
  group.port = static_cast<uint16_t>(port);
  if (!bytes_from(json.at("key").get_ref<const std::string&>(), group.key)) {
    return fail(Code::invalid, "image descriptor: the group's key is not 32 hex digits");
  }
  return group;
}

Result<std::vector<Run>> hot_from(const nlohmann::json& json, uint32_t pages) {
  const auto flat = json.get<std::vector<uint64_t>>();
  if (flat.size() % 2 != 0 || flat.size() / 2 > kMaxHotRanges) {
    return fail(Code::invalid, "image descriptor: {} figures as hot ranges", flat.size());
  }
  std::vector<Run> ranges;
  uint64_t end = 0;
  for (size_t i = 0; i < flat.size(); i += 2) {
    if (flat[i] < end || flat[i] >= pages || flat[i + 1] == 0 || flat[i + 1] > pages - flat[i]) {
      return fail(Code::invalid, "image descriptor: hot range {}+{} is not within {} pages",
                  flat[i], flat[i + 1], pages);
    }
    end = flat[i] + flat[i + 1];
    ranges.push_back({static_cast<uint32_t>(flat[i]), static_cast<uint32_t>(flat[i + 1])});
  }
  return ranges;
}

Result<Descriptor> checked_descriptor(const nlohmann::json& json) {
  Descriptor descriptor;
  SNOW_ASSIGN(descriptor.id, image_id_from(json.at("id").get_ref<const std::string&>()));
  descriptor.size_bytes = json.at("size").get<uint64_t>();
  if (descriptor.size_bytes == 0 || descriptor.size_bytes > kMaxImageBytes) {
    return fail(Code::invalid, "image descriptor: a size of {} bytes", descriptor.size_bytes);
  }
  descriptor.origin = json.at("origin").get<std::string>();
  if (descriptor.origin.empty() || descriptor.origin.size() > kMaxHostText) {
    return fail(Code::invalid, "image descriptor: {:?} is no host id", descriptor.origin);
  }
  descriptor.origin_key = json.value("origin_key", "");
  if (descriptor.origin_key.size() > kMaxKeyText) {
    return fail(Code::invalid, "image descriptor: the origin's key is too long");
  }
  if (const auto at = json.find("multicast"); at != json.end()) {
    SNOW_ASSIGN(descriptor.multicast, group_from(*at));
  }
  if (const auto at = json.find("hot"); at != json.end()) {
    SNOW_ASSIGN(descriptor.hot, hot_from(*at, pages_of(descriptor.size_bytes)));
  }
  return descriptor;
}

}  // namespace

ImageId random_image_id() {
  ImageId id{};
  const auto bytes = random_bytes(id.size());
  std::copy(bytes.begin(), bytes.end(), id.begin());
  return id;
}

std::string to_text(const ImageId& id) { return hex_of(id); }

Result<ImageId> image_id_from(std::string_view text) {
  ImageId id{};
  if (!bytes_from(text, id)) {
    return fail(Code::invalid, "image id {:?}: not 32 hex digits", text.substr(0, 64));
  }
  return id;
}

nlohmann::json to_json(const Descriptor& descriptor) {
  nlohmann::json json = {{"id", to_text(descriptor.id)},
                         {"size", descriptor.size_bytes},
                         {"origin", descriptor.origin}};
  if (!descriptor.origin_key.empty()) json["origin_key"] = descriptor.origin_key;
  if (descriptor.multicast) {
    json["multicast"] = {{"group", descriptor.multicast->address},
                         {"port", descriptor.multicast->port},
                         {"key", hex_of(descriptor.multicast->key)}};
  }
  if (!descriptor.hot.empty()) {
    auto& flat = json["hot"] = nlohmann::json::array();
    for (const Run& range : descriptor.hot) {
      flat.push_back(range.first);
      flat.push_back(range.count);
    }
  }
  return json;
}

Result<Descriptor> descriptor_from_json(const nlohmann::json& json) {
  try {
    return checked_descriptor(json);
  } catch (const nlohmann::json::exception& error) {
    return fail(Code::invalid, "image descriptor: {}", error.what());
  }
}

}  // namespace snow::exchange
