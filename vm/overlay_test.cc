#include "vm/overlay.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/process.h"
#include "base/test_folder.h"

namespace snow {
namespace {

TEST(OverlayMaker, MakesAnOverlayThatQemuUnderstands) {
  const TestFolder folder;
  OverlayMaker maker(folder.path());
  const uid_t uid = ::geteuid() == 0 ? 700'001 : ::geteuid();
  ASSERT_TRUE(maker.prepare(64 << 20));
  const auto made = maker.make(64 << 20, folder / "a.qcow2", uid, uid);
  ASSERT_TRUE(made) << made.error().message;
  struct stat status {};
  ASSERT_EQ(::stat((folder / "a.qcow2").c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, uid);
  EXPECT_EQ(status.st_mode & 07777, 0600u);
  const auto output = run_process({"qemu-img", "info", "--output=json", folder / "a.qcow2"});
  ASSERT_TRUE(output);
  const auto info = nlohmann::json::parse(output->standard_output);
  EXPECT_EQ(info["virtual-size"], 64 << 20);
  EXPECT_EQ(info["backing-filename"], "/vm/disk.raw");
  EXPECT_EQ(info["backing-filename-format"], "raw");
}

TEST(OverlayMaker, SizesHaveTemplatesOfTheirOwn) {
  const TestFolder folder;
  OverlayMaker maker(folder.path());
  for (const uint64_t size : {uint64_t{512}, uint64_t{1} << 20, uint64_t{1} << 40}) {
    const std::string path = folder / std::to_string(size);
    const auto made = maker.make(size, path, ::geteuid(), ::getegid());
    ASSERT_TRUE(made) << made.error().message;
    EXPECT_LT(std::filesystem::file_size(path), 1u << 20);
  }
  EXPECT_EQ(maker.make(513, folder / "odd", 0, 0).error().code, Code::invalid);
  EXPECT_EQ(maker.make(0, folder / "odd", 0, 0).error().code, Code::invalid);
}

TEST(OverlayMaker, WhatIsThereIsNotOverwritten) {
  const TestFolder folder;
  OverlayMaker maker(folder.path());
  ASSERT_TRUE(write_file(folder / "mine", "precious"));
  EXPECT_EQ(maker.make(1 << 20, folder / "mine", 0, 0).error().code, Code::exists);
  EXPECT_EQ(read_file(folder / "mine").value(), "precious");
  EXPECT_EQ(maker.make(1 << 20, folder / "no/such/folder", 0, 0).error().code, Code::host_failed);
}

}  // namespace
}  // namespace snow
