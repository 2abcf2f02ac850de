// An immutable image: a stack of layers, shown flattened. Building the next image from this one
// copies extents, never data. Thread-safe for reads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <shared_mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "image/content.h"
#include "image/extent_map.h"
#include "image/layer.h"

namespace snow {

class Image : public Content {
 public:
  // `map`'s layer numbers index `layers`.
  Image(uint64_t size_bytes, std::vector<std::shared_ptr<Layer>> layers, ExtentMap map);

  // One file as it is: holes are zero.
  static Result<std::shared_ptr<Image>> of_file(const std::string& path, uint64_t size_bytes,
                                                bool owned);

  // `top`'s extents (their `layer` is ignored, except kZeroLayer: explicit zeros) over this image.
  // Layers that nothing shows any more are left out.
  [[nodiscard]] std::shared_ptr<Image> with_layer(std::shared_ptr<Layer> top,
                                                  const std::vector<Extent>& extents) const;

  // Where this image has more than `limit` layers: copies what it shows of those layers that only
  // `is_private` says nobody else uses into one new file at `path` and shows that instead. Readers
  // go on meanwhile. False when there was nothing to merge.
  Result<bool> merge_layers(size_t limit, const std::string& path,
                            const std::function<bool(const Layer&)>& is_private);

  // The whole image into one sparse file (snapshots): zero pages become holes.
  Result<void> write_to(const std::string& path) const;

  [[nodiscard]] uint64_t size() const override { return size_; }
  Result<void> read(uint64_t offset, std::span<std::byte> into) override;

  [[nodiscard]] std::vector<std::shared_ptr<Layer>> layers() const;
  [[nodiscard]] size_t layer_count() const;
  [[nodiscard]] uint64_t data_bytes() const;  // what is not zero by the extents

  // For the daemon that comes after this one: {"size", "layers": [paths], "extents": [[offset,
  // length, layer, layer_offset]...]}. Fails with wrong_state while a layer has no file yet.
  // from_json checks every bound (Code::corrupt) and opens the layers through `open_layer`, so that
  // layers that several images share are opened once.
  [[nodiscard]] Result<nlohmann::json> to_json() const;
  static Result<std::shared_ptr<Image>> from_json(
      const nlohmann::json& json,
      const std::function<Result<std::shared_ptr<Layer>>(const std::string&)>& open_layer);

 private:
  const uint64_t size_;
  mutable std::shared_mutex mutex_;  // merge_layers against readers
  std::vector<std::shared_ptr<Layer>> layers_;
  ExtentMap map_;
};

}  // namespace snow
