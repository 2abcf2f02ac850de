#include "image/image.h"

#include <cassert>
#include <cstring>

#include "image/image_state.h"

namespace snow {

Result<void> Image::State::read(uint64_t offset, std::span<std::byte> into) const {
  Result<void> result;
  map.visit(offset, into.size(), [&](const Extent& piece) {
    const auto part = into.subspan(piece.offset - offset, piece.length);
    if (piece.layer == kZeroLayer) {
      std::memset(part.data(), 0, part.size());
      return true;
    }
    result = layers[piece.layer]->read(piece.layer_offset, part);
    return result.has_value();
  });
  return result;
}

void Image::State::drop_hidden_layers() {
  std::vector<bool> shown(layers.size());
  size_t left = layers.size();
  for (const Extent& extent : map.extents()) {
    if (shown[extent.layer]) continue;
    shown[extent.layer] = true;
    if (--left == 0) return;  // all are shown, as is usual
  }
  std::vector<size_t> numbers(layers.size());
  std::vector<std::shared_ptr<Layer>> kept;
  for (size_t i = 0; i < layers.size(); ++i) {
    numbers[i] = kept.size();
    if (shown[i]) kept.push_back(std::move(layers[i]));
  }
  layers = std::move(kept);
  map.renumber(numbers);
}

Image::Image(uint64_t size_bytes, std::vector<std::shared_ptr<Layer>> layers, ExtentMap map)
    : size_(size_bytes),
      state_(std::make_shared<const State>(State{std::move(layers), std::move(map)})) {
  assert(state_->map.count() == 0 || state_->map.extents().back().end() <= size_);
}

Image::~Image() = default;

std::shared_ptr<const Image::State> Image::state() const {
  const std::shared_lock lock(mutex_);
  return state_;
}

Result<std::shared_ptr<Image>> Image::of_file(const std::string& path, uint64_t size_bytes,
                                              bool owned, Holes holes) {
  // Not owned until all is well: a failure leaves the file to the caller.
  SNOW_ASSIGN(auto layer, FileLayer::open(path, false));
  if (layer->size_bytes() < size_bytes) {
    return fail(Code::corrupt, "image {}: the file has {} bytes where {} are expected: truncated?",
                path, layer->size_bytes(), size_bytes);
  }
  std::vector<Range> ranges = {{0, size_bytes}};
  if (holes == Holes::are_found) {
    SNOW_ASSIGN(ranges, layer->data_ranges());
  }
  std::vector<Extent> extents;
  for (const Range& range : ranges) {
    if (range.offset >= size_bytes) break;
    const uint64_t length = std::min(range.length, size_bytes - range.offset);
    extents.push_back({range.offset, length, 0, range.offset});
  }
  if (owned) layer->own();
  return std::make_shared<Image>(size_bytes, std::vector<std::shared_ptr<Layer>>{std::move(layer)},
                                 ExtentMap(std::move(extents)));
}

std::shared_ptr<Image> Image::with_layer(std::shared_ptr<Layer> top,
                                         const std::vector<Extent>& extents) const {
  const auto below = state();
  State next{below->layers, below->map.overlaid(extents, below->layers.size())};
  next.layers.push_back(std::move(top));
  next.drop_hidden_layers();
  return std::make_shared<Image>(size_, std::move(next.layers), std::move(next.map));
}

Result<void> Image::read(uint64_t offset, std::span<std::byte> into) {
  assert(offset <= size_ && into.size() <= size_ - offset);
  return state()->read(offset, into);
}

std::vector<std::shared_ptr<Layer>> Image::layers() const { return state()->layers; }
size_t Image::layer_count() const { return state()->layers.size(); }
uint64_t Image::data_bytes() const { return state()->map.data_bytes(); }

std::vector<Range> Image::data_ranges() const {
  const auto shown = state();
  // What each layer holds, by offset in the layer.
  std::vector<std::vector<Range>> held(shown->layers.size());
  for (size_t i = 0; i < held.size(); ++i) {
    held[i] = {{0, shown->layers[i]->size_bytes()}};
    if (const auto* file = dynamic_cast<const FileLayer*>(shown->layers[i].get())) {
      if (auto found = file->data_ranges()) held[i] = std::move(*found);
    }
  }
  std::vector<Range> ranges;
  for (const Extent& extent : shown->map.extents()) {
    const uint64_t layer_end = extent.layer_offset + extent.length;
    const auto& in_layer = held[extent.layer];
    auto at = std::partition_point(in_layer.begin(), in_layer.end(), [&](const Range& range) {
      return range.offset + range.length <= extent.layer_offset;
    });
    for (; at != in_layer.end() && at->offset < layer_end; ++at) {
      const uint64_t begin = std::max(at->offset, extent.layer_offset);
      const uint64_t end = std::min(at->offset + at->length, layer_end);
      const uint64_t offset = extent.offset + (begin - extent.layer_offset);
      if (!ranges.empty() && ranges.back().offset + ranges.back().length == offset) {
        ranges.back().length += end - begin;
      } else {
        ranges.push_back({offset, end - begin});
      }
    }
  }
  return ranges;
}

}  // namespace snow
