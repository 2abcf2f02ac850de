#include "image/extent_map.h"

#include <cassert>
#include <utility>

namespace snow {
namespace {

bool continues(const Extent& left, const Extent& right) {
  return left.end() == right.offset && left.layer == right.layer &&
         left.layer_offset + left.length == right.layer_offset;
}

// What `extent` has in [from, to), which it overlaps.
Extent cut(const Extent& extent, uint64_t from, uint64_t to) {
  const uint64_t begin = std::max(extent.offset, from);
  const uint64_t end = std::min(extent.end(), to);
  return {begin, end - begin, extent.layer, extent.layer_offset + (begin - extent.offset)};
}

}  // namespace

ExtentMap::ExtentMap(std::vector<Extent> sorted) {
  size_t kept = 0;
  uint64_t end = 0;
  for (const Extent& extent : sorted) {
    assert(extent.length > 0 && extent.offset >= end && extent.end() > extent.offset);
    end = extent.end();
    if (extent.layer == kZeroLayer) continue;
    if (kept > 0 && continues(sorted[kept - 1], extent)) {
      sorted[kept - 1].length += extent.length;
    } else {
      sorted[kept++] = extent;
    }
  }
  sorted.resize(kept);
  extents_ = std::move(sorted);
}

void ExtentMap::append(const Extent& extent) {
  if (extent.layer == kZeroLayer) return;
  if (!extents_.empty() && continues(extents_.back(), extent)) {
    extents_.back().length += extent.length;
  } else {
    extents_.push_back(extent);
  }
}

void ExtentMap::overlay(const Extent& extent) {
  *this = overlaid(std::span(&extent, 1), extent.layer);
}

ExtentMap ExtentMap::overlaid(std::span<const Extent> top, size_t layer) const {
  ExtentMap merged;
  // Each extent of `top` can split one of ours. Memory that is reserved and not used stays
  // untouched.
  merged.extents_.reserve(extents_.size() + 2 * top.size());
  auto ours = extents_.begin();
  uint64_t shown_to = 0;  // below this all is decided
  for (Extent extent : top) {
    assert(extent.length > 0 && extent.offset >= shown_to && extent.end() > extent.offset);
    if (extent.layer != kZeroLayer) extent.layer = layer;
    for (; ours != extents_.end() && ours->end() <= extent.offset; ++ours) {
      merged.append(cut(*ours, shown_to, extent.offset));
    }
    if (ours != extents_.end() && std::max(ours->offset, shown_to) < extent.offset) {
      merged.append(cut(*ours, shown_to, extent.offset));
    }
    merged.append(extent);
    shown_to = extent.end();
    while (ours != extents_.end() && ours->end() <= shown_to) ++ours;
  }
  for (; ours != extents_.end(); ++ours) merged.append(cut(*ours, shown_to, ours->end()));
  return merged;
}

void ExtentMap::renumber(std::span<const size_t> numbers) {
  for (Extent& extent : extents_) extent.layer = numbers[extent.layer];
}

uint64_t ExtentMap::data_bytes() const {
  uint64_t bytes = 0;
  for (const Extent& extent : extents_) bytes += extent.length;
  return bytes;
}

uint64_t ExtentMap::data_bytes_of(size_t layer) const {
  uint64_t bytes = 0;
  for (const Extent& extent : extents_) bytes += extent.layer == layer ? extent.length : 0;
  return bytes;
}

}  // namespace snow
