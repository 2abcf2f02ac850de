#include "exchange/reassembly.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "exchange/page_body.h"
#include "exchange/test_key.h"
#include "image/test_folder.h"

namespace snow::exchange {
namespace {

using Packets = std::vector<wire::Buffer>;

class ReassemblyTest : public testing::Test {
 protected:
  using Run = exchange::Run;

  ReassemblyTest() : data_(some_bytes(64 * kPageBytes, 1)) {
    group_.key.fill(std::byte{5});
    std::fill_n(data_.begin() + 3 * kPageBytes, 2 * kPageBytes, std::byte{});
    // Two, one and three fragments (the last as it is).
    std::fill_n(data_.begin() + 7 * kPageBytes, kPageBytes / 2, std::byte{1});
    std::fill_n(data_.begin() + 8 * kPageBytes, kPageBytes - 100, std::byte{2});
    std::fill_n(data_.begin() + 9 * kPageBytes, kPageBytes / 5, std::byte{3});
  }

  Reassembly receiver() {
    return Reassembly(group_, image_, 1000, SigningKey::from_public_pem(key_.public_pem()).value());
  }
  Packets burst(Run run, uint32_t number = 1) { return burst(run, number, key_); }
  Packets burst(Run run, uint32_t number, const SigningKey& signer) {
    Announcement announcement;
    announcement.burst = number;
    announcement.run = run;
    Bytes bodies = data_;
    pack_burst(bodies, announcement);
    wire::Buffer content;
    signed_text(announcement, image_, 77, content);
    announcement.signature = signer.sign(content).value();
    Packets packets;
    Sealer sealer(group_.key, image_);
    const auto add = [&] { sealer.seal({77, counter_++}, content, packets.emplace_back()); };
    encode(announcement, content);
    add();
    for (uint16_t page = 0; page < run.count; ++page) {
      for (uint8_t part = 0; part < fragments_of(announcement.sizes[page]); ++part) {
        encode(fragment_of(announcement, page, part, bodies), content);
        add();
      }
    }
    return packets;
  }
  // How many pages came, each checked.
  size_t take(Reassembly& reassembly, uint32_t first, bool all = true) {
    size_t pages = 0;
    reassembly.take_ready(all, [&](Run run, uint64_t zeros, wire::Bytes raw) {
      visit_stretches(run, zeros, raw, [&](Run part, wire::Bytes bytes) {
        pages += part.count;
        const std::byte* expected = data_.data() + (part.first - first) * kPageBytes;
        const Bytes nothing(part.count * kPageBytes);
        const std::byte* got = bytes.empty() ? nothing.data() : bytes.data();
        EXPECT_EQ(std::memcmp(expected, got, nothing.size()), 0);
      });
    });
    return pages;
  }

  const ImageId image_ = random_image_id();
  MulticastGroup group_;
  TestKey key_file_;
  SigningKey key_ = SigningKey::from_private_file(key_file_.path()).value();
  Bytes data_;
  uint32_t counter_ = 0;
};

TEST_F(ReassemblyTest, AnyOrderAndRepetitionGivesEachPageOnce) {
  std::mt19937 random(1);
  for (int round = 0; round < 5; ++round) {
    auto reassembly = receiver();
    Packets packets = burst({10, 64}, static_cast<uint32_t>(round));
    packets.insert(packets.end(), packets.begin(), packets.begin() + 100);
    std::shuffle(packets.begin(), packets.end(), random);
    size_t pages = 0;
    for (const auto& packet : packets) {
      reassembly.add(packet);
      pages += take(reassembly, 10);
    }
    EXPECT_EQ(pages, 64u);
  }
}

TEST_F(ReassemblyTest, AMissingFragmentCostsItsPageOnly) {
  auto reassembly = receiver();
  Packets packets = burst({0, 16});
  packets.erase(packets.begin() + 5);
  for (const auto& packet : packets) reassembly.add(packet);
  EXPECT_EQ(take(reassembly, 0), 15u);
  const PacketCounts counts = reassembly.take_counts();
  EXPECT_EQ(counts.missed, 1u);
  EXPECT_EQ(counts.got, packets.size());
}

TEST_F(ReassemblyTest, PagesWaitForTheRestOfTheirBurst) {
  auto reassembly = receiver();
  const Packets packets = burst({0, 16}, 1);
  for (size_t i = 0; i + 1 < packets.size(); ++i) reassembly.add(packets[i]);
  EXPECT_EQ(take(reassembly, 0, false), 0u);
  reassembly.add(packets.back());
  EXPECT_EQ(take(reassembly, 0, false), 16u);
  // Another begins: what the one before lacks was lost.
  const Packets lossy = burst({0, 16}, 2);
  for (size_t i = 0; i + 1 < lossy.size(); ++i) reassembly.add(lossy[i]);
  EXPECT_EQ(take(reassembly, 0, false), 0u);
  reassembly.add(burst({0, 16}, 3)[0]);
  EXPECT_EQ(take(reassembly, 0, false), 15u);
}

TEST_F(ReassemblyTest, WhatTheOriginDidNotSignIsNotBelieved) {
  TestKey other;
  auto reassembly = receiver();
  const auto false_key = SigningKey::from_private_file(other.path()).value();
  for (const auto& packet : burst({0, 16}, 1, false_key)) reassembly.add(packet);
  EXPECT_EQ(take(reassembly, 0), 0u);
}

TEST_F(ReassemblyTest, FragmentsThatAHolderOfTheKeyMadeUpAreNot) {
  auto reassembly = receiver();
  const Packets packets = burst({0, 16});
  Sealer sealer(group_.key, image_);
  wire::Buffer content, packet;
  for (uint16_t page = 0; page < 16; ++page) {
    const wire::Buffer wrong(kFragmentBytes, std::byte{0x66});
    encode(Fragment{1, page, 0, wrong}, content);
    sealer.seal({77, 5000u + page}, content, packet);
    reassembly.add(packet);
  }
  for (const auto& true_packet : packets) reassembly.add(true_packet);
  EXPECT_EQ(take(reassembly, 0), 16u);  // the true ones came after the false ones
}

TEST_F(ReassemblyTest, OtherGroupsVersionsAndBitsAreDropped) {
  auto reassembly = receiver();
  for (auto packet : burst({0, 4})) {
    for (const size_t at :
         {size_t{0}, size_t{4}, size_t{9}, size_t{15}, size_t{30}, packet.size() - 1}) {
      auto wrong = packet;
      wrong[at] ^= std::byte{1};
      reassembly.add(wrong);
    }
    reassembly.add(std::span(packet).first(packet.size() - 1));
    reassembly.add(std::span(packet).first(30));
  }
  EXPECT_EQ(take(reassembly, 0), 0u);
  EXPECT_EQ(reassembly.take_counts().got, 0u);
}

TEST_F(ReassemblyTest, ManyBurstsAtATimeDoNotGrowIt) {
  auto reassembly = receiver();
  std::vector<Packets> bursts;
  for (uint32_t number = 0; number < 20; ++number) bursts.push_back(burst({0, 8}, number));
  for (size_t i = 0; i < bursts[0].size(); ++i) {
    for (const auto& packets : bursts) reassembly.add(packets[i]);
  }
  (void)take(reassembly, 0);
  for (const auto& packet : burst({0, 8}, 99)) reassembly.add(packet);
  EXPECT_GE(take(reassembly, 0), 8u);
}

}  // namespace
}  // namespace snow::exchange
