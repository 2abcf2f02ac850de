// Which layer holds which range of an image: a flattened view of a stack of layers, as sorted
// extents that do not overlap. What no extent covers is zero.
//
// A plain value; const functions may run at the same time. All figures are bytes. A range's end
// never overflows: callers check what comes from outside before it gets here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace snow {

// A range within one layer's file, or a plain range where only that is needed.
struct Range {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool operator==(const Range&) const = default;
};

struct Extent {
  uint64_t offset = 0;        // in the image
  uint64_t length = 0;        // > 0
  size_t layer = 0;           // the caller's number for a layer; kZeroLayer: zeros
  uint64_t layer_offset = 0;  // where offset's byte is in the layer
  bool operator==(const Extent&) const = default;
  [[nodiscard]] uint64_t end() const { return offset + length; }
};

// An extent of this layer is zeros: it hides what lower layers hold.
inline constexpr size_t kZeroLayer = static_cast<size_t>(-1);

class ExtentMap {
 public:
  ExtentMap() = default;
  // `sorted`: by offset, without overlaps. Neighbours that continue each other in the same layer
  // are joined, zero extents dropped.
  explicit ExtentMap(std::vector<Extent> sorted);

  // Lays `extent` over what is there (a newer layer hides an older one), with the same joins. Costs
  // a copy of the map: for many extents use overlaid().
  void overlay(const Extent& extent);

  // This map with `top` (sorted, without overlaps) laid over it: as overlay() of each, at the cost
  // of one pass over both. All of `top` belongs to `layer`, but for its kZeroLayer extents.
  [[nodiscard]] ExtentMap overlaid(std::span<const Extent> top, size_t layer) const;

  // Gives each extent of layer i the number `numbers[i]`.
  void renumber(std::span<const size_t> numbers);

  // Calls `visit` (const Extent& -> bool) for each piece of [offset, offset + length), in order and
  // without gaps; holes come as pieces of kZeroLayer with layer_offset 0. Stops when it returns
  // false. Allocates nothing.
  template <class Visit>
  void visit(uint64_t offset, uint64_t length, Visit&& visit) const;

  [[nodiscard]] const std::vector<Extent>& extents() const { return extents_; }
  [[nodiscard]] size_t count() const { return extents_.size(); }
  [[nodiscard]] uint64_t data_bytes() const;  // covered by extents
  [[nodiscard]] uint64_t data_bytes_of(size_t layer) const;

 private:
  void append(const Extent& extent);

  std::vector<Extent> extents_;  // sorted by offset, no overlaps, no zeros, joined
};

template <class Visit>
void ExtentMap::visit(uint64_t offset, uint64_t length, Visit&& visit) const {
  const uint64_t end = offset + length;
  auto at = std::partition_point(extents_.begin(), extents_.end(),
                                 [&](const Extent& extent) { return extent.end() <= offset; });
  while (offset < end) {
    Extent piece{offset, end - offset, kZeroLayer, 0};
    if (at != extents_.end() && at->offset <= offset) {
      const uint64_t skipped = offset - at->offset;
      piece.length = std::min(piece.length, at->length - skipped);
      piece.layer = at->layer;
      piece.layer_offset = at->layer_offset + skipped;
      ++at;
    } else if (at != extents_.end()) {
      piece.length = std::min(piece.length, at->offset - offset);
    }
    if (!visit(piece)) return;
    offset += piece.length;
  }
}

}  // namespace snow
