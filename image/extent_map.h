// Which layer holds which range of an image: a flattened view of a stack of layers, as sorted
// extents that do not overlap. What no extent covers is zero.
//
// A plain value; not thread-safe. All figures are bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
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
};

// An extent of this layer is zeros: it hides what lower layers hold.
inline constexpr size_t kZeroLayer = static_cast<size_t>(-1);

class ExtentMap {
 public:
  // Lays `extent` over what is there (a newer layer hides an older one). Neighbours that continue
  // each other in the same layer are joined; zero extents are dropped after they have hidden what
  // they cover.
  void overlay(const Extent& extent);

  // Calls `visit` for each piece of [offset, offset + length), in order and without gaps; holes
  // come as pieces of kZeroLayer. Stops when `visit` returns false.
  void visit(uint64_t offset, uint64_t length, const std::function<bool(const Extent&)>& visit) const;

  [[nodiscard]] std::vector<Extent> extents() const;
  [[nodiscard]] size_t count() const { return extents_.size(); }
  [[nodiscard]] uint64_t data_bytes() const;              // covered by extents
  [[nodiscard]] uint64_t data_bytes_of(size_t layer) const;

 private:
  struct Piece {
    uint64_t length;
    size_t layer;
    uint64_t layer_offset;
  };
  std::map<uint64_t, Piece> extents_;  // by image offset
};

}  // namespace snow
