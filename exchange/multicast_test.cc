// Multicast between exchanges of one process, over loopback, with bad luck on the way.
#include <algorithm>
#include <random>

#include "exchange/test_hosts.h"
#include "exchange/test_key.h"

namespace snow::exchange {
namespace {

using Packets = std::vector<std::vector<std::byte>>;

Options with_multicast(const std::string& key_file, std::function<void(Packets&)> meddle = {}) {
  Options options;
  options.key_file = key_file;
  options.multicast.enabled = true;
  options.multicast.interface_address = "127.0.0.1";
  options.multicast.meddle = std::move(meddle);
  return options;
}

// An origin and two receivers that read the same pages in the same order, as clones do.
struct Group {
  explicit Group(std::function<void(Packets&)> meddle = {})
      : b(cluster, "hbbbbbbbbbbbb", with_multicast("", meddle)),
        c(cluster, "hcccccccccccc", with_multicast("", meddle)) {
    for (Host* host : {&a, &b, &c}) host->up();
    descriptor = a.exchange->offer(pattern);
    at_b = b.exchange->open(descriptor, cluster.folder / "b").value();
    at_c = c.exchange->open(descriptor, cluster.folder / "c").value();
    listening =
        soon([&] { return a.exchange->statistics()["offers"][0]["multicast_listeners"] == 2; });
  }
  // The first bursts are to find out whether anybody hears them.
  void probe() {
    EXPECT_TRUE(reads_right(*at_b, *pattern, 0, 4 << 20));
    EXPECT_TRUE(soon([&] { return at_c->statistics()["from_multicast"]["pages"] > 0; }));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));  // reports
  }
  void read_all() {
    std::thread other([&] { EXPECT_TRUE(all_right(*at_c, *pattern)); });
    EXPECT_TRUE(all_right(*at_b, *pattern));
    other.join();
  }
  [[nodiscard]] uint64_t multicast_pages() const {
    return at_b->statistics()["from_multicast"]["pages"].get<uint64_t>() +
           at_c->statistics()["from_multicast"]["pages"].get<uint64_t>();
  }

  TestKey key;
  Cluster cluster;
  Host a{cluster, "haaaaaaaaaaaa", with_multicast(key.path())};
  Host b, c;
  const std::shared_ptr<Pattern> pattern = std::make_shared<Pattern>(uint64_t{16} << 20, 3, 17);
  Descriptor descriptor;
  std::shared_ptr<RemoteLayer> at_b, at_c;
  bool listening = false;
};

TEST(Multicast, OneAnswerServesAllHosts) {
  Group group;
  ASSERT_TRUE(group.descriptor.multicast);
  ASSERT_TRUE(group.listening);
  std::atomic<uint64_t> handed_out = 0;
  group.at_c->on_pages([&](uint64_t offset, std::span<const std::byte> bytes) {
    EXPECT_TRUE(group.pattern->matches(offset, bytes));
    handed_out += bytes.size();
  });
  group.probe();
  group.read_all();
  EXPECT_GT(group.multicast_pages(), 1000u) << group.a.exchange->statistics().dump(1);
  EXPECT_GT(handed_out, 0u);
}

TEST(Multicast, LossRepetitionAndDisorderHarmNothing) {
  for (const int percent : {1, 5, 20}) {
    std::mutex mutex;
    std::mt19937 random(static_cast<uint32_t>(percent));
    Group group([&](Packets& packets) {
      const std::lock_guard lock(mutex);
      std::erase_if(packets,
                    [&](const auto&) { return random() % 100 < static_cast<unsigned>(percent); });
      if (!packets.empty()) packets.push_back(packets[random() % packets.size()]);
      std::shuffle(packets.begin(), packets.end(), random);
    });
    group.probe();
    group.read_all();
    EXPECT_GT(group.multicast_pages(), 0u) << percent;
    ASSERT_TRUE(group.at_b->detach(60'000));
    ASSERT_TRUE(group.at_c->detach(60'000));
  }
}

TEST(Multicast, ChangedPacketsAreDropped) {
  Group group([](Packets& packets) {
    for (auto& packet : packets) packet[packet.size() / 2] ^= std::byte{1};
  });
  group.read_all();
  EXPECT_EQ(group.multicast_pages(), 0u);
}

TEST(Multicast, WhereNothingPassesUnicastDoes) {
  Group group([](Packets& packets) { packets.clear(); });
  group.read_all();
  EXPECT_EQ(group.multicast_pages(), 0u);
  ASSERT_TRUE(group.at_b->detach(60'000));
}

TEST(Multicast, AnInterfaceThatIsNotThereIsOff) {
  Cluster cluster;
  TestKey key;
  Options options = with_multicast(key.path());
  options.multicast.interface_address = "203.0.113.77";
  Host a(cluster, "haaaaaaaaaaaa", options);
  EXPECT_FALSE(a.exchange->offer(std::make_shared<Pattern>(1 << 20)).multicast);
}

TEST(Multicast, TheGroupIsTheSameAfterARestart) {
  Cluster cluster;
  TestKey key;
  const auto offer = [&](const ImageId& id) {
    Host a(cluster, "haaaaaaaaaaaa", with_multicast(key.path()));
    return a.exchange->offer(std::make_shared<Pattern>(1 << 20), {id, {}, true});
  };
  const ImageId id = random_image_id();
  const Descriptor first = offer(id);
  ASSERT_TRUE(first.multicast);
  EXPECT_EQ(offer(id), first);
  EXPECT_NE(offer(random_image_id()).multicast->key, first.multicast->key);
}

}  // namespace
}  // namespace snow::exchange
