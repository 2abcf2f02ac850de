// The map against a naive model: for each byte of a small image, the layer and offset it shows.
#include "image/extent_map.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <utility>

namespace snow {
namespace {

constexpr uint64_t kSize = 200;

using Byte = std::pair<size_t, uint64_t>;  // layer, offset in it
struct Model {
  std::vector<Byte> bytes = std::vector<Byte>(kSize, Byte{kZeroLayer, 0});

  void overlay(const Extent& extent) {
    for (uint64_t i = 0; i < extent.length; ++i) {
      bytes[extent.offset + i] = extent.layer == kZeroLayer
                                     ? Byte{kZeroLayer, 0}
                                     : Byte{extent.layer, extent.layer_offset + i};
    }
  }
};

std::vector<Byte> shown(const ExtentMap& map, uint64_t offset, uint64_t length) {
  std::vector<Byte> bytes;
  map.visit(offset, length, [&](const Extent& piece) {
    EXPECT_EQ(piece.offset, offset + bytes.size());
    EXPECT_GT(piece.length, 0u);
    for (uint64_t i = 0; i < piece.length; ++i) {
      bytes.emplace_back(piece.layer, piece.layer == kZeroLayer ? 0 : piece.layer_offset + i);
    }
    return true;
  });
  return bytes;
}

// Sorted, no overlaps, no zeros, nothing that could be joined.
void check_invariants(const ExtentMap& map) {
  const auto& extents = map.extents();
  RC_ASSERT(extents.size() == map.count());
  for (size_t i = 0; i < extents.size(); ++i) {
    RC_ASSERT(extents[i].length > 0u);
    RC_ASSERT(extents[i].layer != kZeroLayer);
    if (i == 0) continue;
    const Extent& left = extents[i - 1];
    RC_ASSERT(left.end() <= extents[i].offset);
    RC_ASSERT(!(left.end() == extents[i].offset && left.layer == extents[i].layer &&
                left.layer_offset + left.length == extents[i].layer_offset));
  }
}

rc::Gen<Extent> any_extent() {
  return rc::gen::exec([] {
    Extent extent;
    extent.offset = *rc::gen::inRange<uint64_t>(0, kSize);
    extent.length =
        *rc::gen::inRange<uint64_t>(1, std::min<uint64_t>(kSize - extent.offset, 40) + 1);
    const int kind = *rc::gen::inRange(0, 5);
    extent.layer = kind == 4 ? kZeroLayer : static_cast<size_t>(kind);
    // Layers that mirror the image give many joins.
    extent.layer_offset = *rc::gen::arbitrary<bool>() ? extent.offset : extent.offset * 3;
    return extent;
  });
}

// Sorted and apart, now and then touching.
rc::Gen<std::vector<Extent>> any_sorted() {
  return rc::gen::exec([] {
    std::vector<Extent> extents;
    uint64_t at = *rc::gen::inRange<uint64_t>(0, 30);
    while (at < kSize) {
      Extent extent = *any_extent();
      extent.offset = at;
      extent.length = std::min(*rc::gen::inRange<uint64_t>(1, 20), kSize - at);
      extents.push_back(extent);
      at = extent.end() + *rc::gen::inRange<uint64_t>(0, 12);
    }
    return extents;
  });
}

RC_GTEST_PROP(ExtentMapProperty, ShowsWhatANaiveModelShows, ()) {
  ExtentMap map;
  Model model;
  for (const Extent& extent : *rc::gen::container<std::vector<Extent>>(any_extent())) {
    map.overlay(extent);
    model.overlay(extent);
    check_invariants(map);
  }
  RC_ASSERT(shown(map, 0, kSize) == model.bytes);
  const uint64_t from = *rc::gen::inRange<uint64_t>(0, kSize);
  const uint64_t length = *rc::gen::inRange<uint64_t>(0, kSize - from + 1);
  const auto part = std::vector<Byte>(model.bytes.begin() + static_cast<long>(from),
                                      model.bytes.begin() + static_cast<long>(from + length));
  RC_ASSERT(shown(map, from, length) == part);
  uint64_t data = 0;
  std::map<size_t, uint64_t> by_layer;
  for (const Byte& byte : model.bytes) {
    if (byte.first == kZeroLayer) continue;
    ++data;
    ++by_layer[byte.first];
  }
  RC_ASSERT(map.data_bytes() == data);
  for (size_t layer = 0; layer < 4; ++layer) {
    RC_ASSERT(map.data_bytes_of(layer) == by_layer[layer]);
  }
}

RC_GTEST_PROP(ExtentMapProperty, ManyAtOnceAreAsOneByOne, ()) {
  ExtentMap map;
  for (const Extent& extent : *rc::gen::container<std::vector<Extent>>(any_extent())) {
    map.overlay(extent);
  }
  const std::vector<Extent> top = *any_sorted();
  const ExtentMap together = map.overlaid(top, 7);
  check_invariants(together);
  for (Extent extent : top) {
    if (extent.layer != kZeroLayer) extent.layer = 7;
    map.overlay(extent);
  }
  RC_ASSERT(together.extents() == map.extents());
}

RC_GTEST_PROP(ExtentMapProperty, ASortedListIsAMap, ()) {
  const std::vector<Extent> sorted = *any_sorted();
  ExtentMap one_by_one;
  for (const Extent& extent : sorted) one_by_one.overlay(extent);
  const ExtentMap map(sorted);
  check_invariants(map);
  RC_ASSERT(map.extents() == one_by_one.extents());
}

TEST(ExtentMap, NeighboursThatContinueEachOtherAreJoined) {
  ExtentMap map;
  map.overlay({0, 10, 1, 100});
  map.overlay({20, 10, 1, 120});
  EXPECT_EQ(map.count(), 2u);
  map.overlay({10, 10, 1, 110});
  EXPECT_EQ(map.extents(), (std::vector<Extent>{{0, 30, 1, 100}}));
  map.overlay({30, 10, 1, 0});  // the same layer, elsewhere
  map.overlay({40, 10, 2, 10});
  EXPECT_EQ(map.count(), 3u);
}

TEST(ExtentMap, ZerosHideAndLeaveNothing) {
  ExtentMap map;
  map.overlay({0, 30, 0, 0});
  map.overlay({10, 10, kZeroLayer, 0});
  EXPECT_EQ(map.extents(), (std::vector<Extent>{{0, 10, 0, 0}, {20, 10, 0, 20}}));
  map.overlay({0, 30, kZeroLayer, 0});
  EXPECT_EQ(map.count(), 0u);
}

TEST(ExtentMap, AVisitorCanStop) {
  ExtentMap map;
  map.overlay({10, 10, 0, 0});
  int visits = 0;
  map.visit(0, 30, [&](const Extent&) { return ++visits < 2; });
  EXPECT_EQ(visits, 2);
}

TEST(ExtentMap, RenumberChangesOnlyNumbers) {
  ExtentMap map;
  map.overlay({0, 10, 0, 5});
  map.overlay({10, 10, 2, 5});
  const size_t numbers[] = {4, 9, 0};
  map.renumber(numbers);
  EXPECT_EQ(map.extents(), (std::vector<Extent>{{0, 10, 4, 5}, {10, 10, 0, 5}}));
}

}  // namespace
}  // namespace snow
