#include "vm/image_catalog.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/process.h"
#include "base/test_folder.h"

namespace snow {
namespace {

constexpr size_t kDiskBytes = 4 << 20;

class ImageCatalogTest : public testing::Test {
 protected:
  void SetUp() override {
    catalog_ = ImageCatalog::open(folder_ / "state").value();
    // A disk with something at its start and end, and nothing between.
    disk_ = std::string(kDiskBytes, '\0');
    disk_.replace(0, 6, "begin\n");
    for (size_t i = kDiskBytes - 300'000; i < kDiskBytes; ++i) {
      disk_[i] = static_cast<char>(i * 7 / 5);
    }
    ASSERT_TRUE(write_file(folder_ / "disk.raw", disk_));
    ASSERT_TRUE(write_file(folder_ / "vmlinuz", "kernel"));
    ASSERT_TRUE(write_file(folder_ / "initrd.img", "initrd"));
  }

  std::string convert(const std::string& format, const std::vector<std::string>& options = {}) {
    std::string into = folder_ / ("disk." + format);
    std::vector<std::string> argv = {"qemu-img", "convert", "-f", "raw", "-O", format};
    argv.insert(argv.end(), options.begin(), options.end());
    argv.push_back(folder_ / "disk.raw");
    argv.push_back(into);
    run(argv);
    return into;
  }
  static void run(const std::vector<std::string>& argv) {
    const auto output = run_process(argv);
    ASSERT_TRUE(output) << output.error().message;
    ASSERT_EQ(output->exit_code, 0) << output->standard_error;
  }

  // The import must be refused, and leave nothing.
  void refused(const ImportRequest& request, Code code, std::string_view words) {
    const auto image = catalog_->import(request);
    ASSERT_FALSE(image) << words;
    EXPECT_EQ(image.error().code, code) << image.error().message;
    EXPECT_NE(image.error().message.find(words), std::string::npos) << image.error().message;
    EXPECT_TRUE(std::filesystem::is_empty(folder_ / "state/images"));
  }

  TestFolder folder_;
  std::unique_ptr<ImageCatalog> catalog_;
  std::string disk_;
};

TEST_F(ImageCatalogTest, EveryFormatBecomesTheSameSparseRawDisk) {
  for (const std::string format : {"raw", "qcow2", "vmdk", "vdi", "vhdx", "qed"}) {
    const std::string file = format == "raw" ? folder_ / "disk.raw" : convert(format);
    const auto image = catalog_->import({.file = file, .name = format});
    ASSERT_TRUE(image) << format << ": " << image.error().message;
    EXPECT_TRUE(image->has_disk);
    EXPECT_FALSE(image->has_kernel);
    EXPECT_EQ(image->size_bytes, kDiskBytes);
    EXPECT_LT(image->bytes, kDiskBytes / 2) << "not sparse";
    EXPECT_EQ(read_file(image->disk_path).value(), disk_) << format;
  }
  EXPECT_EQ(catalog_->list()->size(), 6u);
}

TEST_F(ImageCatalogTest, AnImageIsFoundAgainWithAllItsFields) {
  ASSERT_TRUE(catalog_->import({.file = folder_ / "disk.raw",
                                .name = "web",
                                .kernel = folder_ / "vmlinuz",
                                .initrd = folder_ / "initrd.img",
                                .append = "console=ttyS0 quiet",
                                .memory_bytes = 512u << 20,
                                .cpus = 2}));
  catalog_.reset();
  catalog_ = ImageCatalog::open(folder_ / "state").value();
  const auto image = catalog_->find("web");
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->append, "console=ttyS0 quiet");
  EXPECT_EQ(read_file(image->kernel_path).value(), "kernel");
  EXPECT_EQ(read_file(image->initrd_path).value(), "initrd");
  const nlohmann::json json = to_json(*image);
  EXPECT_EQ(json["memory"], 512u << 20);
  EXPECT_EQ(json["cpus"], 2);
  EXPECT_EQ(json["kernel"], true);
  EXPECT_EQ(json["disk_size"], kDiskBytes);
  EXPECT_TRUE(catalog_->remove("web"));
  EXPECT_EQ(catalog_->find("web").error().code, Code::not_found);
  EXPECT_EQ(catalog_->remove("web").error().code, Code::not_found);
  EXPECT_TRUE(catalog_->list()->empty());
}

TEST_F(ImageCatalogTest, AnImageMayHaveOnlyAKernel) {
  const auto image = catalog_->import({.name = "tiny", .kernel = folder_ / "vmlinuz"});
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_FALSE(image->has_disk);
  EXPECT_EQ(image->size_bytes, 0u);
  EXPECT_EQ(image->disk_path, "");
  EXPECT_EQ(catalog_->import({.name = "tiny", .kernel = folder_ / "vmlinuz"}).error().code,
            Code::exists);
}

TEST_F(ImageCatalogTest, WhatIsNoImageIsRefused) {
  refused({.file = folder_ / "none", .name = "x"}, Code::not_found, "none");
  refused({.file = folder_.path(), .name = "x"}, Code::invalid, "folder");
  ASSERT_TRUE(write_file(folder_ / "empty", ""));
  refused({.file = folder_ / "empty", .name = "x"}, Code::invalid, "empty");
  ASSERT_TRUE(write_file(folder_ / "text", "hello, world"));
  refused({.file = folder_ / "text", .name = "x"}, Code::invalid, "not a disk image");
  ASSERT_TRUE(write_file(folder_ / "gz", std::string("\x1f\x8b") + std::string(510, 'x')));
  refused({.file = folder_ / "gz", .name = "x"}, Code::invalid, "compressed");
  ASSERT_EQ(::mkfifo((folder_ / "fifo").c_str(), 0600), 0);
  refused({.file = folder_ / "fifo", .name = "x"}, Code::invalid, "not a regular file");
  refused({.file = folder_ / "disk.raw", .name = "x", .kernel = folder_ / "none"}, Code::not_found,
          "kernel");
  refused({.name = "x"}, Code::invalid, "neither");
  refused({.file = folder_ / "disk.raw", .name = "x", .append = "quiet"}, Code::invalid,
          "--kernel");
  refused({.file = folder_ / "disk.raw", .name = "x", .memory_bytes = 12345}, Code::invalid,
          "2 MiB");
}

TEST_F(ImageCatalogTest, NamesCannotLeaveTheFolder) {
  for (const std::string name : {"", ".", "..", "../x", "a/b", ".hidden", "-x", "a b"}) {
    refused({.file = folder_ / "disk.raw", .name = name}, Code::invalid, "name");
    EXPECT_EQ(catalog_->find(name).error().code, Code::not_found);
    EXPECT_EQ(catalog_->remove(name).error().code, Code::not_found);
  }
  refused({.file = folder_ / "disk.raw", .name = std::string(64, 'a')}, Code::invalid, "name");
  EXPECT_TRUE(catalog_->import({.file = folder_ / "disk.raw", .name = std::string(63, 'a')}));
}

TEST_F(ImageCatalogTest, TruncatedImagesAreRefused) {
  for (const std::string format : {"qcow2", "vmdk", "vdi", "vhdx"}) {
    const std::string file = convert(format);
    std::filesystem::resize_file(file, std::filesystem::file_size(file) / 2);
    refused({.file = file, .name = "x"}, Code::corrupt, "");
    std::filesystem::resize_file(file, 100);
    const auto stump = catalog_->import({.file = file, .name = "x"});
    ASSERT_FALSE(stump) << format;
    EXPECT_TRUE(stump.error().code == Code::corrupt || stump.error().code == Code::invalid)
        << stump.error().message;
  }
}

TEST_F(ImageCatalogTest, AHostileImageCannotNameOtherFiles) {
  const std::string secret = folder_ / "disk.raw";
  run({"qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", folder_ / "b"});
  refused({.file = folder_ / "b", .name = "x"}, Code::invalid, "backing file");
  run({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=" + (folder_ / "data"),
       folder_ / "d", "1M"});
  refused({.file = folder_ / "d", .name = "x"}, Code::invalid, "another file");
  ASSERT_TRUE(write_file(folder_ / "t",
                         "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
                         "createType=\"monolithicFlat\"\n\nRW 1 FLAT \"" +
                             secret + "\" 0\n"));
  refused({.file = folder_ / "t", .name = "x"}, Code::invalid, "other files");
  run({"qemu-img", "create", "-q", "-f", "vmdk", "-b", convert("vmdk"), "-F", "vmdk",
       folder_ / "v"});
  refused({.file = folder_ / "v", .name = "x"}, Code::invalid, "another file");
  run({"qemu-img", "create", "-q", "-f", "qed", "-b", secret, "-F", "raw", folder_ / "q"});
  refused({.file = folder_ / "q", .name = "x"}, Code::invalid, "another file");
  std::string encrypted = read_file(convert("qcow2")).value();
  encrypted[35] = 2;  // crypt_method: LUKS
  ASSERT_TRUE(write_file(folder_ / "e", encrypted));
  refused({.file = folder_ / "e", .name = "x"}, Code::invalid, "encrypted");
}

TEST_F(ImageCatalogTest, AnImageThatWasCutAfterImportIsCorrupt) {
  const auto image = catalog_->import({.file = folder_ / "disk.raw", .name = "web"});
  ASSERT_TRUE(image);
  std::filesystem::resize_file(image->disk_path, kDiskBytes - 512);
  EXPECT_EQ(catalog_->find("web").error().code, Code::corrupt);
  EXPECT_TRUE(catalog_->list()->empty());
  ::unlink(image->disk_path.c_str());
  EXPECT_EQ(catalog_->find("web").error().code, Code::corrupt);
  for (const char* text : {"", "[]", "{}", "{\"files\": 7}", "{\"append\": {}}"}) {
    ASSERT_TRUE(write_file(folder_ / "state/images/web/image.json", text));
    EXPECT_EQ(catalog_->find("web").error().code, Code::corrupt) << text;
  }
  EXPECT_TRUE(catalog_->remove("web"));
}

TEST_F(ImageCatalogTest, WhatAKilledDaemonLeftIsRemoved) {
  ASSERT_TRUE(make_folders(folder_ / "state/images/.import-abcd"));
  ASSERT_TRUE(write_file(folder_ / "state/images/.import-abcd/disk.raw", "half"));
  EXPECT_TRUE(catalog_->list()->empty());
  catalog_.reset();
  catalog_ = ImageCatalog::open(folder_ / "state").value();
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / "state/images"));
}

TEST_F(ImageCatalogTest, AFullDiskIsToldAndNothingIsLeft) {
  const std::string small = folder_ / "small";
  ASSERT_TRUE(make_folders(small));
  if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=256k") < 0) {
    GTEST_SKIP() << "cannot mount a small tmpfs: " << strerror(errno);
  }
  struct Unmount {
    const std::string& path;
    ~Unmount() { ::umount2(path.c_str(), MNT_DETACH); }
  } const unmount{small};
  auto catalog = ImageCatalog::open(small).value();
  for (const std::string& file : {folder_ / "disk.raw", convert("qcow2")}) {
    const auto image = catalog->import({.file = file, .name = "web"});
    ASSERT_FALSE(image);
    EXPECT_EQ(image.error().code, Code::host_failed);
    EXPECT_NE(image.error().message.find("No space left"), std::string::npos)
        << image.error().message;
    EXPECT_TRUE(std::filesystem::is_empty(small + "/images"));
  }
}

}  // namespace
}  // namespace snow
