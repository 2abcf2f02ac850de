// The map of a qcow2 overlay against overlays that QEMU made, and against damaged ones.
#include "image/qcow2.h"

#include <endian.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

#include "base/process.h"
#include "image/image.h"
#include "image/test_folder.h"

namespace snow {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

void run(const std::vector<std::string>& argv) {
  const auto output = run_process(argv);
  ASSERT_TRUE(output) << output.error().message;
  ASSERT_EQ(output->exit_code, 0) << argv[0] << ": " << output->standard_output
                                  << output->standard_error;
  ASSERT_EQ(output->standard_output.find("error"), std::string::npos) << output->standard_output;
}

Result<Qcow2Map> map_of(const std::string& path,
                        std::optional<uint64_t> expected_size = std::nullopt) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(fd) << path;
  return read_qcow2_map(fd.get(), path, expected_size);
}

Result<Qcow2Map> map_of(const Bytes& bytes) {
  const Fd fd(::memfd_create("qcow2", MFD_CLOEXEC));
  EXPECT_TRUE(write_all_at(fd.get(), 0, bytes, "memfd"));
  return read_qcow2_map(fd.get(), "memfd");
}

class Qcow2Test : public testing::Test {
 protected:
  void create(const std::string& name, uint64_t size, const std::string& options,
              const std::string& base = "") {
    std::vector<std::string> argv = {"qemu-img", "create", "-q", "-f", "qcow2", "-o", options};
    if (!base.empty()) argv.insert(argv.end(), {"-F", "raw", "-b", folder_ / base});
    argv.insert(argv.end(), {folder_ / name, std::to_string(size)});
    run(argv);
  }
  void io(const std::string& name, const std::vector<std::string>& commands) {
    std::vector<std::string> argv = {"qemu-io", "-f", "qcow2", "-d", "unmap"};
    for (const auto& command : commands) argv.insert(argv.end(), {"-c", command});
    argv.push_back(folder_ / name);
    run(argv);
  }
  std::shared_ptr<Image> base_image(uint64_t size) {
    write_bytes(folder_ / "base", some_bytes(size, 1));
    return Image::of_file(folder_ / "base", size, false).value();
  }
  // `image` with the overlay as a layer shows what QEMU itself reads.
  void check(const std::shared_ptr<Image>& image, const std::string& name) {
    const auto map = map_of(folder_ / name, image->size());
    ASSERT_TRUE(map) << map.error().message;
    EXPECT_EQ(map->virtual_size, image->size());
    const auto next =
        image->with_layer(FileLayer::open(folder_ / name, false).value(), map->extents);
    Bytes ours(image->size());
    const auto result = next->read(0, ours);
    ASSERT_TRUE(result) << result.error().message;
    run({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", folder_ / name, folder_ / "raw"});
    ASSERT_TRUE(ours == read_bytes(folder_ / "raw")) << name;
  }

  const TestFolder folder_;
};

TEST_F(Qcow2Test, AnEmptyOverlayHasNoExtents) {
  create("overlay", 10 * 1024 * kMiB, "compat=1.1");
  const auto map = map_of(folder_ / "overlay").value();
  EXPECT_EQ(map.virtual_size, 10 * 1024 * kMiB);
  EXPECT_TRUE(map.extents.empty());
}

TEST_F(Qcow2Test, SequentialWritesAreOneExtent) {
  base_image(16 * kMiB);
  create("overlay", 16 * kMiB, "compat=1.1", "base");
  io("overlay", {"write -P 7 1M 8M", "write -z 12M 2M"});
  const auto map = map_of(folder_ / "overlay").value();
  ASSERT_EQ(map.extents.size(), 2u);
  EXPECT_EQ(map.extents[0].offset, kMiB);
  EXPECT_EQ(map.extents[0].length, 8 * kMiB);
  EXPECT_EQ(map.extents[1], (Extent{12 * kMiB, 2 * kMiB, kZeroLayer, 0}));
}

TEST_F(Qcow2Test, ShowsWhatQemuShows) {
  for (const char* options :
       {"compat=1.1", "compat=1.1,cluster_size=512", "compat=1.1,cluster_size=4k",
        "compat=1.1,cluster_size=2M", "compat=1.1,lazy_refcounts=on"}) {
    // A size that is not whole clusters: the last one is cut.
    const uint64_t size = 6 * kMiB + 512 * 3;
    const auto image = base_image(size);
    create("overlay", size, options, "base");
    std::mt19937 random(11);
    std::vector<std::string> commands;
    for (int i = 0; i < 60; ++i) {
      const char* const kinds[] = {"write -P 0x5a ", "write -P 0x33 ", "write -z ", "write -z -u ",
                                   "discard "};
      const uint64_t at = random() % (size / 512);
      const uint64_t length = 1 + random() % std::min<uint64_t>(size / 512 - at, 400);
      commands.push_back(kinds[random() % 5] + std::to_string(at * 512) + " " +
                         std::to_string(length * 512));
    }
    commands.push_back("write -P 0x77 " + std::to_string(size - 512) + " 512");
    io("overlay", commands);
    check(image, "overlay");
    std::filesystem::remove(folder_ / "overlay");
  }
}

TEST_F(Qcow2Test, AnOverlayThatNobodyClosedIsRead) {
  const auto image = base_image(4 * kMiB);
  create("overlay", 4 * kMiB, "compat=1.1,lazy_refcounts=on", "base");
  // As when a QEMU is killed: flushed, dirty. Its exit code is that of the kill.
  const auto killed = run_process({"qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 1M", "-c",
                                   "flush", "-c", "abort", folder_ / "overlay"});
  ASSERT_TRUE(killed);
  const Bytes bytes = read_bytes(folder_ / "overlay");
  EXPECT_EQ(std::to_integer<int>(bytes[79]) & 1, 1) << "the test has made no dirty overlay";
  check(image, "overlay");
}

TEST_F(Qcow2Test, AWrongSizeIsRefused) {
  create("overlay", 4 * kMiB, "compat=1.1");
  EXPECT_TRUE(map_of(folder_ / "overlay", 4 * kMiB));
  EXPECT_EQ(map_of(folder_ / "overlay", 5 * kMiB).error().code, Code::corrupt);
}

// What QEMU can make and we do not read.
TEST_F(Qcow2Test, ForeignFeaturesAreNamed) {
  const auto refused = [&](const std::string& name, const std::string& why) {
    const auto map = map_of(folder_ / name);
    ASSERT_FALSE(map) << name;
    EXPECT_EQ(map.error().code, Code::corrupt);
    EXPECT_NE(map.error().message.find(why), std::string::npos) << map.error().message;
  };
  create("old", kMiB, "compat=0.10");
  refused("old", "version");
  create("l2", kMiB, "compat=1.1,extended_l2=on");
  refused("l2", "extended L2");
  create("data", kMiB, "compat=1.1,data_file=" + (folder_ / "data.raw"));
  refused("data", "external data file");
  create("zstd", kMiB, "compat=1.1,compression_type=zstd");
  refused("zstd", "compression type");
  create("snapshots", kMiB, "compat=1.1");
  run({"qemu-img", "snapshot", "-c", "one", folder_ / "snapshots"});
  refused("snapshots", "snapshots");
  // The old kind: LUKS measures the CPU's time, which fails on a noisy machine.
  run({"qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o",
       "encrypt.format=aes,encrypt.key-secret=s", folder_ / "aes", "1M"});
  refused("aes", "encryption");
  create("compressed", kMiB, "compat=1.1");
  run({"qemu-io", "-f", "qcow2", "-c", "write -c -P 1 0 64k", folder_ / "compressed"});
  refused("compressed", "compressed");
  write_bytes(folder_ / "raw", some_bytes(4096, 2));
  refused("raw", "not a qcow2 file");
  write_bytes(folder_ / "short", Bytes(10));
  refused("short", "too few");
}

class DamagedQcow2Test : public Qcow2Test {
 protected:
  void SetUp() override {
    create("overlay", kMiB, "compat=1.1,cluster_size=4k");
    io("overlay", {"write -P 1 0 64k", "write -P 2 512k 64k"});
    good_ = read_bytes(folder_ / "overlay");
    l1_ = get(good_, 40);
    l2_ = get(good_, l1_) & 0x00fffffffffffe00;
    ASSERT_TRUE(map_of(good_));
  }
  static uint64_t get(const Bytes& bytes, size_t at) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return be64toh(value);
  }
  // The error of the overlay with the 64-bit word at `at` changed.
  std::string with(size_t at, uint64_t value) {
    Bytes bytes = good_;
    const uint64_t word = htobe64(value);
    std::memcpy(bytes.data() + at, &word, sizeof word);
    const auto map = map_of(bytes);
    if (map) return "";
    EXPECT_EQ(map.error().code, Code::corrupt);
    return map.error().message;
  }

  Bytes good_;
  size_t l1_ = 0;
  size_t l2_ = 0;
};

using testing::AssertionResult;
AssertionResult says(const std::string& error, const std::string& part) {
  if (error.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << error << "' lacks '" << part << "'";
}

TEST_F(DamagedQcow2Test, DirtyIsFineCorruptIsNot) {
  EXPECT_EQ(with(72, 1), "");
  EXPECT_TRUE(says(with(72, 2), "damaged"));
  EXPECT_TRUE(says(with(72, 32), "unknown incompatible"));
  EXPECT_TRUE(says(with(72, uint64_t{1} << 63), "unknown incompatible"));
}

TEST_F(DamagedQcow2Test, TablesOutsideTheFileAreRefused) {
  EXPECT_TRUE(says(with(40, good_.size()), "L1 table"));
  EXPECT_TRUE(says(with(40, UINT64_MAX), "L1 table"));
  EXPECT_TRUE(says(with(24, INT64_MAX), "L1 table"));
  EXPECT_TRUE(says(with(24, uint64_t{1} << 63), "impossible size"));
  EXPECT_TRUE(says(with(l1_, good_.size() & ~uint64_t{4095}), "L1 entry"));
  EXPECT_TRUE(says(with(l1_, 0x00fffffffffff000), "L1 entry"));
  EXPECT_TRUE(says(with(l1_, l2_ + 512), "L1 entry"));
  EXPECT_TRUE(says(with(l1_, l2_ + 1), "L1 entry"));
  // A disk of two tables, both the same.
  Bytes twice = good_;
  const uint64_t size = htobe64(4 * kMiB);
  std::memcpy(twice.data() + 24, &size, sizeof size);
  twice[39] = std::byte{2};
  const uint64_t entry = htobe64(l2_);
  std::memcpy(twice.data() + l1_ + 8, &entry, sizeof entry);
  EXPECT_TRUE(says(map_of(twice).error().message, "used twice"));
}

TEST_F(DamagedQcow2Test, ClustersOutsideTheFileAreRefused) {
  EXPECT_TRUE(says(with(l2_, uint64_t{1} << 40), "past the end"));
  EXPECT_TRUE(says(with(l2_, 512), "between clusters"));
  EXPECT_TRUE(says(with(l2_, 0x5000 | 2), "reserved"));
  EXPECT_TRUE(says(with(l2_, 0x5000 | uint64_t{1} << 56), "reserved"));
  EXPECT_TRUE(says(with(l2_, uint64_t{1} << 62), "compressed"));
  EXPECT_EQ(with(l2_, 1), "");
  EXPECT_EQ(with(l2_, 0), "");
}

TEST_F(DamagedQcow2Test, EveryTruncationIsRefused) {
  for (size_t size = 0; size < good_.size(); size += 512) {
    ASSERT_FALSE(map_of(Bytes(good_.begin(), good_.begin() + static_cast<long>(size)))) << size;
  }
}

}  // namespace
}  // namespace snow
