#include "exchange/wire.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>

#include "exchange/page_body.h"
#include "image/test_folder.h"

namespace snow::exchange {
namespace {

using wire::Buffer;

Buffer payload_of(const wire::Pages& pages, const ImageId& image) {
  std::array<std::byte, wire::kPagesHeadBytes> head{};
  wire::encode_head(pages, image, head);
  Buffer out(head.begin(), head.end());
  out.insert(out.end(), pages.body.begin(), pages.body.end());
  return out;
}

TEST(Wire, FetchComesBack) {
  wire::Fetch fetch{7, random_image_id(), {1000, 64}, Lane::hot, true, false, true};
  Buffer out;
  encode(fetch, out);
  EXPECT_EQ(out.size(), 36u);
  const auto again = wire::parse_fetch(out);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->tag, 7);
  EXPECT_EQ(again->image, fetch.image);
  EXPECT_EQ(again->run, fetch.run);
  EXPECT_EQ(again->lane, Lane::hot);
  EXPECT_TRUE(again->no_redirect && !again->again && again->no_wait);
}

TEST(Wire, PagesComeBackAndAnyWrongBitIsSeen) {
  const ImageId image = random_image_id();
  const Bytes body = some_bytes(2 * kPageBytes, 1);
  wire::Pages pages{3, true, false, {9, 4}, 0b0101, body};
  const Buffer out = payload_of(pages, image);
  const auto again = wire::parse_pages(out, image);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->run, pages.run);
  EXPECT_EQ(again->zeros, 0b0101u);
  EXPECT_TRUE(again->last);
  EXPECT_EQ(std::memcmp(again->body.data(), body.data(), body.size()), 0);
  for (size_t at = 0; at < out.size(); at += at < 40 ? 1 : 97) {
    Buffer wrong = out;
    wrong[at] ^= std::byte{0x10};
    EXPECT_FALSE(wire::parse_pages(wrong, image)) << at;
  }
  EXPECT_FALSE(wire::parse_pages(out, random_image_id()));
  for (size_t size = 0; size < out.size(); size += 131) {
    EXPECT_FALSE(wire::parse_pages(std::span(out).first(size), image));
  }
}

TEST(Wire, RedirectComesBack) {
  wire::Redirect redirect;
  redirect.tag = 9;
  redirect.last = false;
  redirect.run = {5, 3};
  redirect.no_wait = true;
  redirect.host_count = 2;
  redirect.hosts = {"h000000000001", "h2"};
  for (size_t i = 0; i < 3; ++i) redirect.hashes[i].fill(std::byte(i + 1));
  Buffer out;
  encode(redirect, out);
  const auto again = wire::parse_redirect(out);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->hosts[0], "h000000000001");
  EXPECT_EQ(again->hosts[1], "h2");
  EXPECT_EQ(again->hashes, redirect.hashes);
  EXPECT_TRUE(again->no_wait && !again->last);
  for (size_t at = 0; at < out.size(); ++at) {
    Buffer wrong = out;
    wrong[at] ^= std::byte{1};
    EXPECT_FALSE(wire::parse_redirect(wrong)) << at;
  }
}

TEST(Wire, TheOthersComeBack) {
  Buffer out;
  encode(wire::Notice{2, true, {8, 64}, 12345}, out);
  EXPECT_EQ(wire::parse_notice(out).value().wait_us, 12345u);
  EXPECT_EQ(wire::parse_notice(out).value().run, (exchange::Run{8, 64}));
  encode(wire::Short{4, true}, out);
  EXPECT_TRUE(wire::parse_short(out).value().leave);
  const ImageId image = random_image_id();
  encode(wire::About{5, image, {1, 70000}}, out);
  EXPECT_EQ(wire::parse_about(out).value().image, image);
  EXPECT_EQ(wire::parse_about(out).value().run.count, 70000u);
  encode(wire::Report{6, image, 100, 3, {{true, "h1"}, {false, "h2"}}}, out);
  const auto report = wire::parse_report(out).value();
  EXPECT_EQ(report.missed, 3u);
  ASSERT_EQ(report.hosts.size(), 2u);
  EXPECT_TRUE(report.hosts[0].wrong);
  EXPECT_EQ(report.hosts[1].host, "h2");

  for (const Bytes& bits : {Bytes(1000), some_bytes(1000, 5)}) {
    encode(wire::Zeros{7, {64, 8000}}, bits, out);
    Buffer got;
    ASSERT_TRUE(wire::parse_zeros(out, got));
    EXPECT_EQ(got, bits);
  }
}

TEST(Wire, AVersionFromTheFutureIsRefusedByName) {
  Buffer out;
  encode(wire::Fetch{1, {}, {0, 1}}, out);
  out[0] = std::byte{2};
  const auto refused = wire::parse_fetch(out);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::corrupt);
  EXPECT_NE(refused.error().message.find("version 2"), std::string::npos);
}

TEST(PageBody, ZerosAreSqueezedOutAndComeBackInPlace) {
  Bytes pages = some_bytes(6 * kPageBytes, 1);
  std::memset(pages.data() + kPageBytes, 0, 2 * kPageBytes);
  std::memset(pages.data() + 5 * kPageBytes, 0, kPageBytes);
  const Bytes before = pages;
  const uint64_t zeros = squeeze_zeros(pages);
  EXPECT_EQ(zeros, 0b100110u);
  Bytes after(before.size());
  visit_stretches({10, 6}, zeros, std::span(pages).first(3 * kPageBytes),
                  [&](exchange::Run run, wire::Bytes bytes) {
                    std::copy(bytes.begin(), bytes.end(),
                              after.begin() + (run.first - 10) * kPageBytes);
                  });
  EXPECT_EQ(after, before);
}

TEST(PageBody, OnlyWhatPaysIsPacked) {
  Packer packer;
  Buffer scratch, unpacked;
  Bytes text(16 * kPageBytes);
  for (size_t i = 0; i < text.size(); ++i) text[i] = std::byte(i / 7 % 50);
  const auto packed = packer.pack(text, scratch);
  ASSERT_LT(packed.size(), text.size() / 2);
  wire::Pages pages{0, true, true, {0, 16}, 0, packed};
  const auto raw = unpack(pages, unpacked);
  ASSERT_TRUE(raw);
  EXPECT_TRUE(std::equal(raw->begin(), raw->end(), text.begin(), text.end()));
  pages.body = packed.first(packed.size() / 2);
  EXPECT_FALSE(unpack(pages, unpacked));

  const Bytes noise = some_bytes(16 * kPageBytes, 2);
  EXPECT_EQ(packer.pack(noise, scratch).data(), noise.data());
}

TEST(PageBody, OnePageIsPackedToo) {
  Packer packer;
  Buffer scratch;
  const Bytes text(kPageBytes, std::byte{7});
  EXPECT_LT(packer.pack(text, scratch).size(), kPageBytes / 2);
  // However much noise went before, it is tried again soon.
  const Bytes noise = some_bytes(64 * kPageBytes, 2);
  for (int i = 0; i < 10; ++i) packer.pack(noise, scratch);
  int tries = 1;
  while (packer.pack(text, scratch).size() == kPageBytes) ++tries;
  EXPECT_LE(tries, 5);
}

TEST(PageBody, TheHashIsSha256) {
  // sha256sum of 4096 zero bytes
  const wire::PageHash& zero = zero_page_hash();
  EXPECT_EQ(zero[0], std::byte{0xad});
  EXPECT_EQ(zero[1], std::byte{0x7f});
  EXPECT_EQ(zero[15], std::byte{0x02});
}

}  // namespace
}  // namespace snow::exchange
