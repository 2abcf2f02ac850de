// Of whom pages are asked, as far as a setting or a restart decides it: the core's rules are wired.
#include "exchange/test_hosts.h"

namespace snow::exchange {
namespace {

const std::string kA = "haaaaaaaaaaaa";
const std::string kB = "hbbbbbbbbbbbb";
const std::string kC = "hcccccccccccc";

TEST(Sources, WithoutRelayTheOriginGivesEverythingItself) {
  Cluster cluster;
  Options alone;
  alone.relay = false;
  Host a(cluster, kA, alone), b(cluster, kB), c(cluster, kC);
  for (Host* host : {&a, &b, &c}) host->up();
  const auto pattern = std::make_shared<Pattern>(uint64_t{2} << 20, 6, 11);
  const auto descriptor = a.exchange->offer(pattern);
  std::vector<std::shared_ptr<RemoteLayer>> layers;  // c could find all of it at b
  for (Host* host : {&b, &c}) {
    const auto layer = host->exchange->open(descriptor, cluster.folder / host->id);
    ASSERT_TRUE(layer) << layer.error().message;
    ASSERT_TRUE((*layer)->detach(20'000));
    EXPECT_TRUE(all_right(**layer, *pattern));
    const auto statistics = (*layer)->statistics();
    EXPECT_EQ(statistics["redirects"], 0);
    EXPECT_EQ(statistics["from_peers"]["background"]["pages"], 0);
    EXPECT_GT(statistics["from_origin"]["background"]["pages"], 400);
    layers.push_back(*layer);
  }
  EXPECT_EQ(a.exchange->statistics()["offers"][0]["pages_redirected"], 0);
}

// An origin that gives zeros, and notes who said that he asks again.
class NotingOrigin {
 public:
  explicit NotingOrigin(Cluster& cluster) : host_(cluster, kA, {}, false) {
    descriptor.id = random_image_id();
    descriptor.size_bytes = uint64_t{64} * kPageBytes;
    descriptor.origin = kA;
    host_.add_services = [this](peer::Server& server) {
      for (const char* name : {"pages", "pages.bulk"}) {
        server.add(name, [this](peer::Connection& connection) { answer(connection); });
      }
    };
    host_.up();
  }
  // Whether the read's ask said so.
  bool asks_again(RemoteLayer& layer, uint32_t page) {
    asks = 0;
    std::vector<std::byte> bytes(kPageBytes);
    const auto read = layer.read(page * kPageBytes, bytes);
    EXPECT_TRUE(read) << read.error().message;
    EXPECT_EQ(asks, 1);
    return again;
  }
  Descriptor descriptor;
  std::atomic<int> asks = 0;
  std::atomic<bool> again = false;

 private:
  void answer(peer::Connection& connection) {
    wire::Buffer in, out;
    for (;;) {
      const auto type = connection.receive_into(in, -1);
      if (!type) return;
      if (*type != static_cast<uint8_t>(wire::Type::fetch)) {  // its map of zeros: not known here
        wire::encode(wire::Short{0, false}, out);
        if (!connection.send(static_cast<uint8_t>(wire::Type::unknown), out, 5000)) return;
        continue;
      }
      const auto fetch = wire::parse_fetch(in);
      if (!fetch) return;
      again = fetch->again;
      ++asks;
      const uint64_t zeros =
          fetch->run.count >= 64 ? ~uint64_t{0} : (uint64_t{1} << fetch->run.count) - 1;
      const wire::Pages pages{fetch->tag, true, false, fetch->run, zeros, {}};
      std::array<std::byte, wire::kPagesHeadBytes> head{};
      wire::encode_head(pages, fetch->image, head);
      if (!connection.send(static_cast<uint8_t>(wire::Type::pages), head, 5000)) return;
    }
  }

  Host host_;
};

// The origin counts it among those that have the page, and may have sent others to wait for it
// there: it must not be sent to wait at them.
TEST(Sources, WhoMayHaveAskedBeforeSaysThatItAsksAgain) {
  Cluster cluster;
  NotingOrigin origin(cluster);
  const std::string path = cluster.folder / "l";
  const auto open = [&](Host& host) {
    auto layer = host.exchange->open(origin.descriptor, path);
    EXPECT_TRUE(layer) << layer.error().message;
    return *layer;
  };
  {
    Host daemon(cluster, kB);
    daemon.up();
    EXPECT_FALSE(origin.asks_again(*open(daemon), 1));  // never asked
    const auto second = open(daemon);                   // the first is gone with what it had
    EXPECT_TRUE(origin.asks_again(*second, 1));
    second->keep();
  }
  Host next(cluster, kB);
  next.up();
  EXPECT_TRUE(origin.asks_again(*open(next), 2));  // of the cache of the daemon before
}

}  // namespace
}  // namespace snow::exchange
