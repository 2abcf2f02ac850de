// Whole exchanges against each other: what is read is right, whatever happens on the way.
#include "exchange/exchange.h"

#include <sys/mount.h>
#include <sys/stat.h>

#include <random>

#include "exchange/test_hosts.h"

namespace snow::exchange {
namespace {

const std::string kA = "haaaaaaaaaaaa";
const std::string kB = "hbbbbbbbbbbbb";
const std::string kC = "hcccccccccccc";

struct Pair {
  Pair() {
    a.up();
    b.up();
  }
  std::shared_ptr<RemoteLayer> open(const Descriptor& descriptor, const std::string& name = "l") {
    auto layer = b.exchange->open(descriptor, cluster.folder / name);
    if (!layer) ADD_FAILURE() << layer.error().message;
    return layer ? *layer : nullptr;
  }
  Cluster cluster;
  Host a{cluster, kA};
  Host b{cluster, kB};
};

TEST(Exchange, ReadsAreRightAtAnyOffsetAndSize) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(3'000'001, 7, 5);
  const auto layer = hosts.open(hosts.a.exchange->offer(pattern));
  std::mt19937 random(3);
  for (int i = 0; i < 300; ++i) {
    const size_t size = 1 + random() % 20000;
    const uint64_t offset = random() % (pattern->size() - size);
    ASSERT_TRUE(reads_right(*layer, *pattern, offset, size)) << offset << "+" << size;
  }
  EXPECT_TRUE(all_right(*layer, *pattern));
  std::vector<std::byte> beyond(10);
  EXPECT_FALSE(layer->read(pattern->size() - 5, beyond));
}

TEST(Exchange, EightThreadsReadAtRandomAndEveryByteIsRight) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(uint64_t{16} << 20, 2, 9);
  const auto layer = hosts.open(hosts.a.exchange->offer(pattern));
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 400; ++i) {
        const size_t size = 1 + random() % 9000;
        ASSERT_TRUE(reads_right(*layer, *pattern, random() % (pattern->size() - size), size));
      }
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  layer->fill();
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(soon([&] { return layer->complete(); }));
  EXPECT_TRUE(all_right(*layer, *pattern));
}

TEST(Exchange, DetachEndsTheDependency) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(5'000'000, 1, 7);
  const auto layer = hosts.open(hosts.a.exchange->offer(pattern));
  std::atomic<int> completed = 0;
  std::atomic<uint64_t> handed_out = 0;
  layer->on_complete([&] { ++completed; });
  layer->on_pages([&](uint64_t offset, std::span<const std::byte> bytes) {
    EXPECT_TRUE(pattern->matches(offset, bytes));
    handed_out += bytes.size();
  });
  ASSERT_TRUE(layer->detach(20'000));
  EXPECT_TRUE(layer->complete());
  EXPECT_TRUE(soon([&] { return completed == 1; }));
  EXPECT_GT(handed_out, 4'000'000u);
  hosts.a.down();
  EXPECT_TRUE(all_right(*layer, *pattern));
  layer->on_complete([&] { ++completed; });
  EXPECT_EQ(completed, 2);
}

TEST(Exchange, TheNextDaemonGoesOnWithWhatIsThere) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(4 << 20, 4);
  const auto descriptor = hosts.a.exchange->offer(pattern);
  auto layer = hosts.open(descriptor);
  ASSERT_TRUE(reads_right(*layer, *pattern, 1 << 20, 1 << 20));
  EXPECT_FALSE(hosts.b.exchange->open(descriptor, layer->path()));  // open already
  layer->keep();
  layer.reset();
  const uint64_t reads = pattern->reads;
  auto again = hosts.b.exchange->reopen(hosts.cluster.folder / "l");
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ((*again)->descriptor(), descriptor);
  ASSERT_TRUE(reads_right(**again, *pattern, 1 << 20, 1 << 20));
  EXPECT_EQ(pattern->reads, reads);
  EXPECT_TRUE(all_right(**again, *pattern));
  EXPECT_GT(pattern->reads, reads);
  again->reset();
  EXPECT_NE(::access((hosts.cluster.folder / "l").c_str(), F_OK), 0);
  EXPECT_NE(::access((hosts.cluster.folder / "l.map").c_str(), F_OK), 0);
  EXPECT_NE(::access((hosts.cluster.folder / "l.json").c_str(), F_OK), 0);
}

TEST(Exchange, AReadWaitsForAnOriginThatIsAwayAndGoesOnWhenItIsBack) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(4 << 20, 4);
  const auto layer = hosts.open(hosts.a.exchange->offer(pattern));
  ASSERT_TRUE(reads_right(*layer, *pattern, 0, 4096));
  hosts.a.down();
  std::atomic<bool> done = false;
  std::thread reader([&] {
    EXPECT_TRUE(reads_right(*layer, *pattern, 1 << 20, 4096));
    done = true;
  });
  EXPECT_TRUE(soon([&] { return layer->waiting(); }));
  EXPECT_EQ(layer->waiting_for(), kA);
  EXPECT_EQ(layer->statistics()["waiting"].size(), 1u);
  EXPECT_FALSE(done);
  EXPECT_TRUE(reads_right(*layer, *pattern, 0, 4096));  // what is here, is here
  hosts.a.up();
  EXPECT_TRUE(soon([&] { return done.load(); }));
  reader.join();
  EXPECT_FALSE(layer->waiting());
}

TEST(Exchange, AnOriginThatCannotReadItsBytesIsWaitedFor) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(1 << 20, 4);
  const auto layer = hosts.open(hosts.a.exchange->offer(pattern));
  pattern->failing = true;
  std::atomic<bool> done = false;
  std::thread reader([&] {
    EXPECT_TRUE(reads_right(*layer, *pattern, 5000, 10000));
    done = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_FALSE(done);
  pattern->failing = false;
  EXPECT_TRUE(soon([&] { return done.load(); }));
  reader.join();
}

TEST(Exchange, StopEndsReadsThatWait) {
  Pair hosts;
  const auto layer = hosts.open(hosts.a.exchange->offer(std::make_shared<Pattern>(1 << 20)));
  hosts.a.down();
  std::thread reader([&] {
    std::vector<std::byte> bytes(4096);
    const auto read = layer->read(0, bytes);
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code, Code::unavailable);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  hosts.b.exchange->stop();
  reader.join();
}

TEST(Exchange, ZerosCostNoTraffic) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(uint64_t{64} << 20, 1, 1);  // all zeros
  Offer offer;
  offer.data_ranges = [] { return std::vector<Range>{}; };
  const auto layer = hosts.open(hosts.a.exchange->offer(pattern, offer));
  ASSERT_TRUE(layer->detach(10'000));
  EXPECT_EQ(pattern->reads, 0u);
  EXPECT_TRUE(all_right(*layer, *pattern));
  EXPECT_EQ(layer->statistics()["from_origin"]["background"]["bytes"], 0);
}

TEST(Exchange, LaterHostsAreSentToEarlierOnes) {
  Pair hosts;
  Host c(hosts.cluster, kC);
  c.up();
  const auto pattern = std::make_shared<Pattern>(uint64_t{8} << 20, 6, 11);
  const auto descriptor = hosts.a.exchange->offer(pattern);
  const auto first = hosts.open(descriptor);
  ASSERT_TRUE(first->detach(20'000));
  const auto second = c.exchange->open(descriptor, hosts.cluster.folder / "c");
  ASSERT_TRUE(second);
  ASSERT_TRUE((*second)->detach(20'000));
  EXPECT_TRUE(all_right(**second, *pattern));
  const auto statistics = (*second)->statistics();
  EXPECT_GT(statistics["from_peers"]["background"]["pages"], 1000);
  EXPECT_GT(first->statistics()["to_peers"]["pages"], 1000);
}

// A peer whose service does what a test wants, and that the origin takes for a holder.
struct BadPeer {
  BadPeer(Cluster& cluster, const Descriptor& descriptor, peer::Server::Service service)
      : host(cluster, kC, {}, false) {
    host.add_services = [service](peer::Server& server) {
      server.add("pages", service);
      server.add("pages.bulk", service);
    };
    host.up();
    wire::Buffer request;
    wire::encode(wire::About{0, descriptor.id, {0, pages_of(descriptor.size_bytes)}}, request);
    auto lease = host.pool->take(descriptor.origin, "pages", 5000);
    if (!lease || !(*lease)->send(static_cast<uint8_t>(wire::Type::have), request, 5000) ||
        !(*lease)->receive(5000)) {
      ADD_FAILURE() << "the origin does not take it";
    }
  }
  Host host;
};

// Right checksums over wrong bytes: only the origin's hashes tell.
void answer_wrong_bytes(peer::Connection& connection) {
  wire::Buffer in;
  while (connection.receive_into(in, -1)) {
    const auto fetch = wire::parse_fetch(in);
    if (!fetch) return;
    const wire::Buffer body(fetch->run.count * kPageBytes, std::byte{0x66});
    const wire::Pages pages{fetch->tag, true, false, fetch->run, 0, body};
    std::array<std::byte, wire::kPagesHeadBytes> head{};
    wire::encode_head(pages, fetch->image, head);
    if (!connection.send(static_cast<uint8_t>(wire::Type::pages), head, body, 5000)) return;
  }
}

TEST(Exchange, APeerWithWrongBytesIsFoundOutAndLeft) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(uint64_t{4} << 20, 6, 13);
  const auto descriptor = hosts.a.exchange->offer(pattern);
  BadPeer bad(hosts.cluster, descriptor, answer_wrong_bytes);
  const auto layer = hosts.open(descriptor);
  std::atomic<bool> all_good = true;
  layer->on_pages([&](uint64_t offset, std::span<const std::byte> bytes) {
    if (!pattern->matches(offset, bytes)) all_good = false;
  });
  ASSERT_TRUE(layer->detach(20'000));
  EXPECT_TRUE(all_right(*layer, *pattern));
  EXPECT_TRUE(all_good);
  EXPECT_GT(layer->statistics()["wrong_answers"], 0);
  EXPECT_EQ(layer->statistics()["from_peers"]["background"]["pages"], 0);
}

TEST(Exchange, APeerThatNeverAnswersCostsLittle) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(uint64_t{4} << 20, 6, 13);
  const auto descriptor = hosts.a.exchange->offer(pattern);
  BadPeer bad(hosts.cluster, descriptor, [](peer::Connection& connection) {
    wire::Buffer in;
    while (connection.receive_into(in, -1)) {
    }
  });
  const auto layer = hosts.open(descriptor);
  const auto begin = std::chrono::steady_clock::now();
  for (uint64_t at = 0; at < 20; ++at) {
    ASSERT_TRUE(reads_right(*layer, *pattern, at * 131072, 4096));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  ASSERT_TRUE(layer->detach(60'000));
  EXPECT_TRUE(all_right(*layer, *pattern));
}

TEST(Exchange, AFullDiskKeepsNothingAndReadsGoOn) {
  Pair hosts;
  const std::string mount = hosts.cluster.folder / "small";
  ASSERT_EQ(::mkdir(mount.c_str(), 0700), 0);
  if (::mount("tmpfs", mount.c_str(), "tmpfs", 0, "size=1m") != 0) GTEST_SKIP() << "not root";
  {
    const auto pattern = std::make_shared<Pattern>(uint64_t{16} << 20, 3);
    const auto layer = hosts.open(hosts.a.exchange->offer(pattern), "small/l");
    EXPECT_TRUE(all_right(*layer, *pattern));
    EXPECT_TRUE(all_right(*layer, *pattern));
    const auto statistics = layer->statistics();
    EXPECT_GT(statistics["pages_not_kept"], 3000);
    EXPECT_TRUE(statistics["disk_full"]);
    EXPECT_LT(statistics["pages_present"], 256);
    const auto detached = layer->detach(10'000);
    ASSERT_FALSE(detached);
    EXPECT_EQ(detached.error().code, Code::host_failed);
    EXPECT_FALSE(layer->complete());
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 random(t);
        for (int i = 0; i < 300; ++i) {
          const uint64_t offset = random() % (pattern->size() - 9000);
          ASSERT_TRUE(reads_right(*layer, *pattern, offset, 1 + random() % 9000));
        }
      });
    }
    for (auto& thread : threads) thread.join();
  }
  EXPECT_EQ(::umount(mount.c_str()), 0);
}

TEST(Exchange, WhatIsEvictedComesAgain) {
  Pair hosts;
  const auto pattern = std::make_shared<Pattern>(uint64_t{4} << 20, 3, 6);
  const auto layer = hosts.open(hosts.a.exchange->offer(pattern));
  ASSERT_TRUE(layer->detach(20'000));
  const uint64_t dropped = hosts.b.exchange->evict(1 << 20);
  EXPECT_GE(dropped, 1u << 20);
  EXPECT_LT(dropped, 2u << 20);
  EXPECT_FALSE(layer->complete());
  EXPECT_TRUE(all_right(*layer, *pattern));
  EXPECT_TRUE(soon([&] { return layer->complete(); }));
  // An origin that does not answer may not have it: nothing is dropped.
  hosts.a.down();
  EXPECT_EQ(hosts.b.exchange->evict(1 << 20), 0u);
}

TEST(Exchange, AVersionFromTheFutureIsRefused) {
  Pair hosts;
  wire::Buffer request;
  wire::encode(wire::Fetch{1, random_image_id(), {0, 1}}, request);
  const auto answer = [&](uint8_t type) {
    auto lease = hosts.b.pool->take_new(kA, "pages", 5000);
    EXPECT_TRUE(lease);
    EXPECT_TRUE((*lease)->send(type, request, 5000));
    auto got = (*lease)->receive(5000);
    return got ? std::string() : got.error().message;
  };
  EXPECT_EQ(answer(static_cast<uint8_t>(wire::Type::fetch)), "");  // UNKNOWN
  EXPECT_NE(answer(99).find("type 99"), std::string::npos);
  request[0] = std::byte{7};
  EXPECT_NE(answer(static_cast<uint8_t>(wire::Type::fetch)).find("version 7"), std::string::npos);
}

TEST(Exchange, TheWorkingSetIsWhatTheFirstHostDemanded) {
  Pair hosts;
  Host c(hosts.cluster, kC);
  c.up();
  const auto pattern = std::make_shared<Pattern>(uint64_t{4} << 20, 3);
  auto descriptor = hosts.a.exchange->offer(pattern);
  const auto layer = hosts.open(descriptor);
  for (const uint64_t page : {10, 11, 500, 900}) {
    ASSERT_TRUE(reads_right(*layer, *pattern, page * kPageBytes, 4096));
  }
  descriptor = hosts.a.exchange->describe(descriptor.id).value();
  EXPECT_EQ(descriptor.hot, (std::vector<exchange::Run>{{10, 2}, {500, 1}, {900, 1}}));
  const auto second = c.exchange->open(descriptor, hosts.cluster.folder / "c").value();
  EXPECT_TRUE(soon([&] { return second->statistics()["pages_present"] == 4; }));
  EXPECT_EQ(second->statistics()["demands"], 0);
  EXPECT_FALSE(hosts.a.exchange->describe(random_image_id()));
  hosts.a.exchange->withdraw(descriptor.id);
  EXPECT_FALSE(hosts.a.exchange->describe(descriptor.id));
}

}  // namespace
}  // namespace snow::exchange
