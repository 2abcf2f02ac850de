// The record of an image: to_json and from_json. What is read was written by a daemon, but a file
// can be damaged: nothing in it is trusted.
#include <nlohmann/json.hpp>
#include <optional>

#include "image/image_state.h"

namespace snow {
namespace {

constexpr size_t kFields = 4;  // offset, length, layer, layer_offset

std::optional<uint64_t> number(const nlohmann::json& json) {
  if (json.is_number_unsigned()) return json.get<uint64_t>();
  if (json.is_number_integer() && json.get<int64_t>() >= 0) return json.get<uint64_t>();
  return std::nullopt;
}

// The array `json[name]`, or null.
const nlohmann::json* array(const nlohmann::json& json, const char* name) {
  const auto found = json.find(name);
  return found != json.end() && found->is_array() ? &*found : nullptr;
}

Result<std::vector<Extent>> read_extents(const nlohmann::json& json, uint64_t size,
                                         const std::vector<std::shared_ptr<Layer>>& layers) {
  if (json.size() % kFields != 0) {
    return fail(Code::corrupt, "image record: {} numbers of extents are not groups of {}",
                json.size(), kFields);
  }
  std::vector<Extent> extents;
  extents.reserve(json.size() / kFields);
  uint64_t end = 0;
  for (size_t i = 0; i < json.size(); i += kFields) {
    uint64_t values[kFields];
    for (size_t field = 0; field < kFields; ++field) {
      const auto value = number(json[i + field]);
      if (!value) {
        return fail(Code::corrupt, "image record: extent {}: not a whole number", i / kFields);
      }
      values[field] = *value;
    }
    const Extent extent{values[0], values[1], values[2], values[3]};
    const char* wrong = nullptr;
    if (extent.length == 0)
      wrong = "is empty";
    else if (extent.offset < end)
      wrong = "overlaps the one before it";
    else if (extent.offset > size || extent.length > size - extent.offset)
      wrong = "leaves the image";
    else if (extent.layer >= layers.size())
      wrong = "has an unknown layer";
    if (wrong != nullptr)
      return fail(Code::corrupt, "image record: extent {} {}", i / kFields, wrong);
    const uint64_t layer_size = layers[extent.layer]->size_bytes();
    if (extent.layer_offset > layer_size || extent.length > layer_size - extent.layer_offset) {
      return fail(Code::corrupt,
                  "image record: extent {} leaves its layer {} of {} bytes: truncated?",
                  i / kFields, layers[extent.layer]->path(), layer_size);
    }
    end = extent.end();
    extents.push_back(extent);
  }
  return extents;
}

}  // namespace

Result<nlohmann::json> Image::to_json() const {
  const auto shown = state();
  auto layers = nlohmann::json::array();
  for (const auto& layer : shown->layers) {
    std::string path = layer->path();
    if (path.empty()) {
      return fail(Code::wrong_state,
                  "image: a layer is still memory of a process; record it when it is copied");
    }
    layers.push_back(std::move(path));
  }
  nlohmann::json::array_t extents;
  extents.reserve(shown->map.count() * kFields);
  for (const Extent& extent : shown->map.extents()) {
    extents.insert(extents.end(),
                   {extent.offset, extent.length, extent.layer, extent.layer_offset});
  }
  nlohmann::json record;
  record["size"] = size_;
  record["layers"] = std::move(layers);
  record["extents"] = std::move(extents);
  return record;
}

Result<std::shared_ptr<Image>> Image::from_json(
    const nlohmann::json& json,
    const std::function<Result<std::shared_ptr<Layer>>(const std::string&)>& open_layer) {
  if (!json.is_object()) return fail(Code::corrupt, "image record: not an object");
  const auto size_field = json.find("size");
  const auto size = size_field == json.end() ? std::nullopt : number(*size_field);
  const nlohmann::json* paths = array(json, "layers");
  const nlohmann::json* extents = array(json, "extents");
  if (!size || paths == nullptr || extents == nullptr) {
    return fail(Code::corrupt, "image record: size, layers or extents are missing or malformed");
  }
  std::vector<std::shared_ptr<Layer>> layers;
  for (const auto& path : *paths) {
    const auto* text = path.get_ptr<const std::string*>();
    if (text == nullptr || text->empty() || text->find('\0') != std::string::npos) {
      return fail(Code::corrupt, "image record: layer {} has no path", layers.size());
    }
    SNOW_ASSIGN(auto layer, open_layer(*text));
    layers.push_back(std::move(layer));
  }
  SNOW_ASSIGN(std::vector<Extent> checked, read_extents(*extents, *size, layers));
  return std::make_shared<Image>(*size, std::move(layers), ExtentMap(std::move(checked)));
}

}  // namespace snow
