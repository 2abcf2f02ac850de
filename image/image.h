// An immutable image: a stack of layers, shown flattened. Building the next image from this one
// copies extents, never data.
//
// Thread model: what an image shows lies in one immutable State; every call takes a reference to it
// under a lock that is held for nothing else, and merge_layers() replaces it. So nobody waits for
// a reader, however slow its layer, and a layer goes away with its last reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "image/content.h"
#include "image/extent_map.h"
#include "image/layer.h"

namespace snow {

class Image : public Content {
 public:
  // `map`'s layer numbers index `layers`; its extents lie within the size and their layers.
  Image(uint64_t size_bytes, std::vector<std::shared_ptr<Layer>> layers, ExtentMap map);
  ~Image() override;

  // One file as it is: holes are zero, what lies after `size_bytes` is not shown. A file that is
  // shorter is Code::corrupt, and still there. Finding the holes costs tens of ns per page of a
  // tmpfs (FileLayer::data_ranges). Within a guest's pause do without: Holes::are_data makes the
  // whole file one extent, holes are zeros that are read from it, and data_bytes() counts them.
  enum class Holes { are_found, are_data };
  static Result<std::shared_ptr<Image>> of_file(const std::string& path, uint64_t size_bytes,
                                                bool owned, Holes holes = Holes::are_found);

  // `top`'s extents over this image: sorted, without overlaps, within its size; their `layer` is
  // ignored, except kZeroLayer: explicit zeros. Layers that nothing shows any more are left out,
  // `top` too. Costs one pass over the extents of both.
  [[nodiscard]] std::shared_ptr<Image> with_layer(std::shared_ptr<Layer> top,
                                                  const std::vector<Extent>& extents) const;

  // Where this image has more than `limit` layers: copies what it shows of those layers that only
  // `is_private` says nobody else uses into one new file at `path` (which must not be the file of a
  // layer) and shows that instead. The private layer that shows most is spared the copy if the
  // limit is kept without it. Readers go on meanwhile.
  //
  // False when there was nothing to merge, or when a layer has no file yet. On failure nothing has
  // changed. Layers that were replaced are given to `replaced`, if it is there, and otherwise go
  // away at once, with their files: a caller with a record of the image (to_json) writes that anew
  // before it lets go of them.
  Result<bool> merge_layers(size_t limit, const std::string& path,
                            const std::function<bool(const Layer&)>& is_private,
                            std::vector<std::shared_ptr<Layer>>* replaced = nullptr);

  // The whole image into one sparse file (snapshots), synced: 4 KiB pages of zeros become holes.
  // The file appears at `path` when it is complete, in place of one that is there.
  Result<void> write_to(const std::string& path) const;

  [[nodiscard]] uint64_t size() const override { return size_; }
  // Allocates nothing.
  Result<void> read(uint64_t offset, std::span<std::byte> into) override;

  [[nodiscard]] std::vector<std::shared_ptr<Layer>> layers() const;
  [[nodiscard]] size_t layer_count() const;
  [[nodiscard]] uint64_t data_bytes() const;  // what is not zero by the extents
  // The same as ranges, less the holes of the layers' files, sorted. Finding holes costs (see
  // Holes); where it fails, the whole layer counts as data.
  [[nodiscard]] std::vector<Range> data_ranges() const;

  // For the daemon that comes after this one: {"size", "layers": [paths], "extents": [offset,
  // length, layer, layer_offset, offset, ...]} (one flat list: there may be 600,000). Fails with
  // wrong_state while a layer has no file yet. from_json checks every bound (Code::corrupt) and
  // opens the layers through `open_layer`, so that layers that several images share are opened
  // once; its errors are passed on.
  [[nodiscard]] Result<nlohmann::json> to_json() const;
  static Result<std::shared_ptr<Image>> from_json(
      const nlohmann::json& json,
      const std::function<Result<std::shared_ptr<Layer>>(const std::string&)>& open_layer);

 private:
  struct State;  // image_state.h

  [[nodiscard]] std::shared_ptr<const State> state() const;

  const uint64_t size_;
  std::mutex merge_mutex_;           // one merge_layers at a time
  mutable std::shared_mutex mutex_;  // state_ itself
  std::shared_ptr<const State> state_;
};

}  // namespace snow
