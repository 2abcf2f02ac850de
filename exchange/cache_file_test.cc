#include "exchange/cache_file.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "image/test_folder.h"

namespace snow::exchange {
namespace {

std::unique_ptr<CacheFile> opened(const std::string& path, const ImageId& id, uint64_t size) {
  auto cache = CacheFile::open(path, id, size);
  if (!cache) ADD_FAILURE() << cache.error().message;
  return cache ? std::move(*cache) : nullptr;
}

bool same(CacheFile& cache, uint64_t offset, std::span<const std::byte> expected) {
  Bytes bytes(expected.size());
  return cache.read(offset, bytes) && std::equal(bytes.begin(), bytes.end(), expected.begin());
}

TEST(CacheFile, HasWhatWasWrittenAndNothingElse) {
  TestFolder folder;
  auto cache = opened(folder / "c", random_image_id(), 200 * kPageBytes - 10);
  const Bytes data = some_bytes(3 * kPageBytes, 1);
  ASSERT_TRUE(cache->write(62, data));
  cache->set_zero(199, 1);
  EXPECT_EQ(cache->present_pages(), 4u);
  EXPECT_FALSE(cache->has(61));
  EXPECT_TRUE(cache->has(62) && cache->has(64) && !cache->has(65));
  EXPECT_TRUE(same(*cache, 62 * kPageBytes + 7, std::span(data).subspan(7, 9000)));
  EXPECT_TRUE(same(*cache, 199 * kPageBytes, Bytes(kPageBytes - 10)));
  Bytes two(2 * kPageBytes);
  EXPECT_FALSE(cache->read(61 * kPageBytes, two));
  EXPECT_FALSE(cache->read(64 * kPageBytes, two));
  EXPECT_EQ(cache->present().next_clear(62, 200), 65u);
  EXPECT_EQ(cache->present().next_set(65, 200), 199u);
  EXPECT_EQ(cache->present().next_set(0, 50), 50u);
}

TEST(CacheFile, ANewOneGoesOnWhereTheLastEnded) {
  TestFolder folder;
  const ImageId id = random_image_id();
  const Bytes data = some_bytes(kPageBytes, 2);
  {
    auto cache = opened(folder / "c", id, 1 << 20);
    ASSERT_TRUE(cache->write(5, data));
    cache->set_zero(9, 2);
    cache->keep();
  }
  {
    auto cache = opened(folder / "c", id, 1 << 20);
    EXPECT_EQ(cache->present_pages(), 3u);
    EXPECT_TRUE(same(*cache, 5 * kPageBytes, data));
    EXPECT_TRUE(cache->is_zero(10) && !cache->is_zero(5));
  }
  EXPECT_EQ(folder.files(), 0u);  // not kept: removed
}

TEST(CacheFile, AnotherImagesCacheIsNotTouched) {
  TestFolder folder;
  const ImageId id = random_image_id();
  opened(folder / "c", id, 1 << 20)->keep();
  auto other = CacheFile::open(folder / "c", random_image_id(), 1 << 20);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, Code::exists);
  EXPECT_EQ(CacheFile::open(folder / "c", id, 1 << 21).error().code, Code::exists);
  write_bytes(folder / "mine", some_bytes(100, 1));
  EXPECT_EQ(CacheFile::open(folder / "mine", id, 1 << 20).error().code, Code::exists);
  EXPECT_EQ(read_bytes(folder / "mine"), some_bytes(100, 1));
}

// What a crash of the host, or a hand, may have left is never shown.
TEST(CacheFile, WhatCannotBeTrustedIsFetchedAgain) {
  const ImageId id = random_image_id();
  const Bytes data = some_bytes(kPageBytes, 3);
  const auto after = [&](const std::function<void(const std::string&)>& harm) {
    TestFolder folder;
    auto cache = opened(folder / "c", id, 100 * kPageBytes);
    EXPECT_TRUE(cache->write(5, data));
    cache->keep();
    cache.reset();
    harm(folder / "c");
    cache = opened(folder / "c", id, 100 * kPageBytes);
    return cache == nullptr ? 0u : cache->present_pages();
  };
  const auto poke = [](const std::string& path, size_t at, char value) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(value);
  };
  EXPECT_EQ(after([](const std::string&) {}), 1u);
  EXPECT_EQ(after([](const std::string& path) { ::unlink(path.c_str()); }), 0u);
  EXPECT_EQ(after([](const std::string& path) { ASSERT_EQ(::truncate(path.c_str(), 4096), 0); }),
            0u);
  EXPECT_EQ(after([&](const std::string& path) { poke(path + ".map", 0, 'X'); }), 0u);
  EXPECT_EQ(after([&](const std::string& path) { poke(path + ".map", 20, 'X'); }), 0u);
  EXPECT_EQ(after([&](const std::string& path) { poke(path + ".map", 4096 + 15, '\xff'); }), 0u);
}

TEST(CacheFile, WhatIsDroppedIsGoneFromTheDiskAndZerosStay) {
  TestFolder folder;
  auto cache = opened(folder / "c", random_image_id(), 1 << 20);
  const Bytes data = some_bytes(1 << 20, 4);
  ASSERT_TRUE(cache->write(0, std::span(data).first(200 * kPageBytes)));
  cache->set_zero(200, 56);
  ASSERT_TRUE(cache->complete());
  ASSERT_TRUE(cache->seal());
  const uint64_t before = allocated(folder / "c");
  EXPECT_EQ(cache->drop(100, 156), 100u);
  EXPECT_LT(allocated(folder / "c"), before);
  EXPECT_FALSE(cache->has(100) || cache->has(199));
  EXPECT_TRUE(cache->has(99) && cache->has(200));
  EXPECT_EQ(cache->present_pages(), 156u);
  EXPECT_FALSE(cache->seal());
}

TEST(CacheFile, ReadersNeverSeeAHole) {
  TestFolder folder;
  auto cache = opened(folder / "c", random_image_id(), 64 * kPageBytes);
  const Bytes data = some_bytes(64 * kPageBytes, 5);
  std::atomic<bool> stop = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      Bytes bytes(8 * kPageBytes);
      for (uint32_t at = 0; !stop; at = (at + 3) % 56) {
        if (!cache->read(at * kPageBytes, bytes)) continue;
        ASSERT_EQ(std::memcmp(bytes.data(), data.data() + at * kPageBytes, bytes.size()), 0);
      }
    });
  }
  for (int i = 0; i < 300; ++i) {
    ASSERT_TRUE(cache->write(0, data));
    cache->drop(static_cast<uint32_t>(i) % 60, 4);
  }
  stop = true;
  for (auto& thread : threads) thread.join();
}

TEST(CacheFile, AFullDiskIsToldAndNothingIsPromised) {
  TestFolder folder;
  const std::string mount = folder / "small";
  ASSERT_EQ(::mkdir(mount.c_str(), 0700), 0);
  if (::mount("tmpfs", mount.c_str(), "tmpfs", 0, "size=256k") != 0) GTEST_SKIP() << "not root";
  {
    auto cache = opened(mount + "/c", random_image_id(), 1 << 20);
    const Bytes data = some_bytes(1 << 20, 6);
    const auto written = cache->write(0, data);
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().code, Code::no_room);
    EXPECT_EQ(cache->present_pages(), 0u);
    // The map of a big image does not fit: no cache at all, and nothing is left behind.
    EXPECT_FALSE(CacheFile::open(mount + "/d", random_image_id(), uint64_t{1} << 36));
    EXPECT_NE(::access((mount + "/d.map").c_str(), F_OK), 0);
  }
  ASSERT_EQ(::umount(mount.c_str()), 0);
}

}  // namespace
}  // namespace snow::exchange
