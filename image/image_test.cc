// Images: stacks of layers against a model, merging under readers, records good and bad.
#include "image/image.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "image/test_folder.h"

namespace snow {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPages = 100;
constexpr size_t kSize = kPages * kPage;

bool everything(const Layer&) { return true; }

Bytes read_all(Image& image) {
  Bytes bytes(image.size(), std::byte{0xee});
  const auto result = image.read(0, bytes);
  EXPECT_TRUE(result) << result.error().message;
  return bytes;
}

class ImageTest : public testing::Test {
 protected:
  // A layer in a file, with `pages` of random bytes at the offsets of the image.
  std::shared_ptr<Layer> layer_of(const std::vector<Extent>& extents, const std::string& name) {
    Bytes bytes(kSize);
    for (const Extent& extent : extents) {
      if (extent.layer == kZeroLayer) continue;
      const Bytes data = some_bytes(extent.length, static_cast<uint32_t>(random_()));
      std::copy(data.begin(), data.end(), bytes.begin() + static_cast<long>(extent.layer_offset));
    }
    write_bytes(folder_ / name, bytes);
    return FileLayer::open(folder_ / name, true).value();
  }

  std::vector<Extent> random_extents() {
    std::vector<Extent> extents;
    for (uint64_t page = random_() % 5; page < kPages; page += random_() % 9) {
      const uint64_t pages = std::min<uint64_t>(1 + random_() % 6, kPages - page);
      const bool zero = random_() % 5 == 0;
      extents.push_back({page * kPage, pages * kPage, zero ? kZeroLayer : 0, page * kPage});
      page += pages;
    }
    return extents;
  }

  // What the image shows with `top` over it.
  static void overlay(Bytes& model, Layer& top, const std::vector<Extent>& extents) {
    for (const Extent& extent : extents) {
      const auto into = std::span(model).subspan(extent.offset, extent.length);
      if (extent.layer == kZeroLayer) {
        std::memset(into.data(), 0, into.size());
      } else {
        EXPECT_TRUE(top.read(extent.layer_offset, into));
      }
    }
  }

  // An image of `depth` layers and more, and its model.
  std::shared_ptr<Image> stack(int depth, Bytes& model) {
    model = some_bytes(kSize, 99);
    write_bytes(folder_ / "base", model);
    auto image = Image::of_file(folder_ / "base", kSize, true).value();
    for (int i = 0; i < depth; ++i) {
      const auto extents = random_extents();
      const auto top = layer_of(extents, "layer" + std::to_string(i));
      overlay(model, *top, extents);
      image = image->with_layer(top, extents);
      EXPECT_EQ(read_all(*image), model);
    }
    return image;
  }

  const TestFolder folder_;
  std::mt19937 random_{7};
};

TEST_F(ImageTest, OfFileShowsDataAndHoles) {
  const Bytes bytes = some_bytes(3 * kPage, 1);
  write_bytes(folder_ / "a", bytes);
  std::filesystem::resize_file(folder_ / "a", 8 * kPage);
  const auto image = Image::of_file(folder_ / "a", 8 * kPage, false).value();
  EXPECT_EQ(image->size(), 8 * kPage);
  EXPECT_EQ(image->data_bytes(), 3 * kPage);
  Bytes expected = bytes;
  expected.resize(8 * kPage);
  EXPECT_EQ(read_all(*image), expected);
  const auto whole =
      Image::of_file(folder_ / "a", 8 * kPage, false, Image::Holes::are_data).value();
  EXPECT_EQ(whole->data_bytes(), 8 * kPage);
  EXPECT_EQ(read_all(*whole), expected);
  const auto shorter = Image::of_file(folder_ / "a", kPage + 7, false).value();
  EXPECT_EQ(read_all(*shorter), Bytes(bytes.begin(), bytes.begin() + kPage + 7));
}

TEST_F(ImageTest, OfFileRefusesAShortFileAndLeavesIt) {
  write_bytes(folder_ / "a", Bytes(100));
  EXPECT_EQ(Image::of_file(folder_ / "a", 101, true).error().code, Code::corrupt);
  EXPECT_EQ(Image::of_file(folder_ / "b", 101, true).error().code, Code::not_found);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "a"));
  Image::of_file(folder_ / "a", 100, true).value().reset();
  EXPECT_FALSE(std::filesystem::exists(folder_ / "a"));
}

TEST_F(ImageTest, StacksShowWhatTheModelShows) {
  Bytes model;
  const auto image = stack(10, model);
  EXPECT_GT(image->layer_count(), 3u);
  for (int i = 0; i < 200; ++i) {
    const size_t at = random_() % kSize;
    const size_t length = random_() % (kSize - at + 1);
    Bytes bytes(length);
    ASSERT_TRUE(image->read(at, bytes));
    ASSERT_EQ(std::memcmp(bytes.data(), model.data() + at, length), 0);
  }
}

TEST_F(ImageTest, LayersThatNothingShowsGoAway) {
  Bytes model;
  auto image = stack(3, model);
  const std::vector<Extent> all = {{0, kSize, 0, 0}};
  const auto top = layer_of(all, "top");
  const auto hidden = image->with_layer(top, all);
  EXPECT_EQ(hidden->layers(), (std::vector<std::shared_ptr<Layer>>{top}));
  EXPECT_EQ(read_all(*image), model);  // the parent still shows its own
  image.reset();
  EXPECT_EQ(folder_.files(), 1u);
  const auto zeros = hidden->with_layer(top, {{0, kSize, kZeroLayer, 0}});
  EXPECT_EQ(zeros->layer_count(), 0u);
  EXPECT_EQ(read_all(*zeros), Bytes(kSize));
}

TEST_F(ImageTest, MergeKeepsContentUnderReaders) {
  Bytes model;
  const auto image = stack(9, model);
  const size_t before = image->layer_count();
  std::atomic<bool> stop = false;
  std::atomic<int> reads = 0;
  std::vector<std::thread> readers;
  for (uint32_t seed = 0; seed < 3; ++seed) {
    readers.emplace_back([&, seed] {
      std::mt19937 random(seed);
      while (!stop) {
        const size_t at = random() % kSize;
        Bytes bytes(random() % std::min<size_t>(kSize - at, 6 * kPage));
        ASSERT_TRUE(image->read(at, bytes));
        ASSERT_EQ(std::memcmp(bytes.data(), model.data() + at, bytes.size()), 0);
        ++reads;
      }
    });
  }
  while (reads < 10) std::this_thread::yield();
  EXPECT_FALSE(image->merge_layers(before, folder_ / "merged", everything).value());
  EXPECT_TRUE(image->merge_layers(1, folder_ / "merged", everything).value());
  for (const int seen = reads; reads < seen + 100;) std::this_thread::yield();
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(image->layer_count(), 1u);
  EXPECT_EQ(read_all(*image), model);
  EXPECT_EQ(folder_.files(), 1u);  // those of the merged layers are gone
  EXPECT_EQ(image->layers()[0]->path(), folder_ / "merged");
  EXPECT_FALSE(image->merge_layers(0, folder_ / "again", everything).value());
}

TEST_F(ImageTest, MergeLeavesWhatOthersUse) {
  Bytes model;
  const auto image = stack(5, model);
  const auto layers = image->layers();
  ASSERT_GE(layers.size(), 5u);
  const auto shared = [&](const Layer& layer) {
    return &layer != layers[0].get() && &layer != layers[3].get();
  };
  std::vector<std::shared_ptr<Layer>> replaced;
  EXPECT_TRUE(image->merge_layers(1, folder_ / "merged", shared, &replaced).value());
  EXPECT_EQ(image->layer_count(), 3u);
  EXPECT_EQ(image->layers()[0], layers[0]);
  EXPECT_EQ(image->layers()[1], layers[3]);
  EXPECT_EQ(replaced.size(), layers.size() - 2);
  EXPECT_EQ(read_all(*image), model);
  EXPECT_FALSE(
      image->merge_layers(1, folder_ / "again", [](const Layer&) { return false; }).value());
}

TEST_F(ImageTest, MergeSparesTheLargestWhenTheLimitAllows) {
  Bytes model;
  const auto image = stack(4, model);
  const auto largest = layer_of({{0, kSize / 2, 0, 0}}, "largest");
  const auto next = image->with_layer(largest, {{0, kSize / 2, 0, 0}});
  overlay(model, *largest, {{0, kSize / 2, 0, 0}});
  const size_t count = next->layer_count();
  ASSERT_GT(count, 3u);
  EXPECT_TRUE(next->merge_layers(count - 1, folder_ / "merged", everything).value());
  EXPECT_EQ(next->layer_count(), 2u);
  EXPECT_EQ(next->layers()[0], largest);
  EXPECT_EQ(read_all(*next), model);
}

TEST_F(ImageTest, MergeThatFailsChangesNothing) {
  Bytes model;
  const auto image = stack(4, model);
  const auto layers = image->layers();
  EXPECT_EQ(image->merge_layers(1, folder_ / "no/folder", everything).error().code,
            Code::host_failed);
  EXPECT_EQ(image->layers(), layers);
  EXPECT_EQ(read_all(*image), model);
}

TEST_F(ImageTest, MergeAndRecordWaitForTheCopyOfAProcess) {
  Bytes model;
  const auto image = stack(4, model);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::pause();
    ::_exit(0);
  }
  // The child has the model's memory too: it plays the QEMU.
  const std::vector<Extent> extents = {{kPage, kPage, 0, kPage}};
  const auto delta =
      std::make_shared<DeltaLayer>(pid, reinterpret_cast<uint64_t>(model.data()),
                                   std::vector<Range>{{kPage, kPage}}, folder_ / "delta");
  const auto next = image->with_layer(delta, extents);
  EXPECT_EQ(read_all(*next), model);
  EXPECT_FALSE(next->merge_layers(1, folder_ / "merged", everything).value());
  EXPECT_EQ(next->to_json().error().code, Code::wrong_state);
  EXPECT_TRUE(delta->copy_out(1 << 20, [] { return true; }));
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
  EXPECT_TRUE(next->to_json());
  EXPECT_TRUE(next->merge_layers(1, folder_ / "merged", everything).value());
  EXPECT_EQ(next->layer_count(), 1u);
  EXPECT_EQ(read_all(*next), model);
}

TEST_F(ImageTest, WriteToIsWholeAndSparse) {
  Bytes model(kSize);
  const Bytes data = some_bytes(7 * kPage, 3);
  std::copy(data.begin(), data.end(), model.begin() + 20 * kPage);
  model[90 * kPage + 5] = std::byte{1};
  write_bytes(folder_ / "a", model);  // zeros are written there, not holes
  const auto image = Image::of_file(folder_ / "a", kSize, false).value();
  ASSERT_TRUE(image->write_to(folder_ / "b"));
  EXPECT_EQ(read_bytes(folder_ / "b"), model);
  EXPECT_LE(allocated(folder_ / "b"), 8 * kPage);
  Bytes stacked;
  ASSERT_TRUE(stack(6, stacked)->write_to(folder_ / "c"));
  EXPECT_EQ(read_bytes(folder_ / "c"), stacked);
  EXPECT_FALSE(image->write_to(folder_ / "no/folder"));
}

TEST_F(ImageTest, RecordsComeBack) {
  Bytes model;
  auto image = stack(6, model);
  const auto record = nlohmann::json::parse(image->to_json().value().dump());
  for (const auto& layer : image->layers()) layer->keep();
  image.reset();
  const auto back = Image::from_json(record, [](const std::string& path) {
    return FileLayer::open(path, true).map([](auto layer) -> std::shared_ptr<Layer> {
      return layer;
    });
  });
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ(read_all(**back), model);
  EXPECT_EQ((*back)->to_json().value(), record);
}

TEST_F(ImageTest, HostileRecordsAreRefused) {
  write_bytes(folder_ / "a", Bytes(100));
  const auto open = [&](const std::string& name) -> Result<std::shared_ptr<Layer>> {
    SNOW_ASSIGN(auto layer, FileLayer::open(folder_ / name, false));
    return std::shared_ptr<Layer>(layer);
  };
  const auto code = [&](const std::string& text) {
    const auto image = Image::from_json(nlohmann::json::parse(text), open);
    return image ? Code{} : image.error().code;
  };
  const auto with = [&](const std::string& extents) {
    return code(R"({"size": 1000, "layers": ["a"], "extents": [)" + extents + "]}");
  };
  EXPECT_EQ(with(""), Code{});
  EXPECT_EQ(with("0, 100, 0, 0"), Code{});
  EXPECT_EQ(with("0, 10, 0, 5, 10, 10, 0, 0, 999, 1, 0, 99"), Code{});
  for (const char* extents :
       {"0",
        "0, 1, 0",
        "0, 1, 0, 0, 0",  // not groups of four
        "0, 0, 0, 0",     // empty
        "0, 10, 0, 0, 9, 1, 0, 0",
        "5, 1, 0, 0, 0, 1, 0, 0",  // overlap, order
        "1000, 1, 0, 0",
        "999, 2, 0, 0",
        "1001, 1, 0, 0",  // outside the image
        "0, 101, 0, 0",
        "0, 1, 0, 100",
        "0, 1, 0, 101",  // outside the layer
        "0, 1, 1, 0",
        "0, 1, 18446744073709551615, 0",  // no such layer; the number of zeros
        "18446744073709551615, 2, 0, 0",
        "2, 18446744073709551615, 0, 0",
        "0, 2, 0, 18446744073709551615",
        "0, 1, 0, 1e30",
        "0, 18446744073709551616, 0, 0",
        "0, -1, 0, 0",
        "-1, 1, 0, 0",
        "0, 1, 0, 0.5",
        "0, \"1\", 0, 0",
        "0, null, 0, 0",
        "[0, 1, 0, 0]",
        "{}",
        "true, true, true, true"}) {
    EXPECT_EQ(with(extents), Code::corrupt) << extents;
  }
  for (const char* text : {"null", "[]", "3", "{}", R"({"size": 10, "layers": []})",
                           R"({"size": "10", "layers": [], "extents": []})",
                           R"({"size": -1, "layers": [], "extents": []})",
                           R"({"size": 1.5, "layers": [], "extents": []})",
                           R"({"size": 10, "layers": {}, "extents": []})",
                           R"({"size": 10, "layers": [], "extents": {}})",
                           R"({"size": 10, "layers": [1], "extents": []})",
                           R"({"size": 10, "layers": [""], "extents": []})",
                           R"({"size": 10, "layers": ["a\u0000b"], "extents": []})"}) {
    EXPECT_EQ(code(text), Code::corrupt) << text;
  }
  EXPECT_EQ(code(R"({"size": 10, "layers": ["b"], "extents": []})"), Code::not_found);
  EXPECT_EQ(code(R"({"size": 18446744073709551615, "layers": [], "extents": []})"), Code{});
}

}  // namespace
}  // namespace snow
