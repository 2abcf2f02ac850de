#include "vm/remote_images.h"

#include <gtest/gtest.h>

#include "exchange/test_hosts.h"

namespace snow {
namespace {

constexpr uint64_t kBytes = 4 * exchange::kPageBytes;

// One layer of a host that is not there, opened and let go; how often the origin was told.
// `held` is what the callback refers to.
unsigned releases(bool leaving, const std::shared_ptr<int>& held) {
  exchange::Cluster cluster;
  exchange::Host here(cluster, "h00000000000a");
  unsigned count = 0;
  {
    RemoteImages images(*here.exchange, {cluster.folder / ""},
                        [&count, held](const std::string&, const std::string&) { ++count; });
    exchange::Descriptor descriptor;
    descriptor.id = exchange::random_image_id();
    descriptor.size_bytes = kBytes;
    descriptor.origin = "h00000000000b";
    auto layer = images.open(descriptor);
    EXPECT_TRUE(layer) << layer.error().message;
    if (leaving) images.leave();
  }
  return count;
}

TEST(RemoteImages, TheLastUserOfALayerTellsItsOrigin) {
  const auto held = std::make_shared<int>();
  EXPECT_EQ(releases(false, held), 1u);
  EXPECT_EQ(held.use_count(), 1);
}

TEST(RemoteImages, ADaemonThatLeavesTellsNobodyAndKeepsNothing) {
  const auto held = std::make_shared<int>();
  EXPECT_EQ(releases(true, held), 0u);
  EXPECT_EQ(held.use_count(), 1);
}

}  // namespace
}  // namespace snow
