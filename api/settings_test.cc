#include "api/settings.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include "base/file.h"

namespace snow {
namespace {

class SettingsFile : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/snow-settings-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
  }
  void TearDown() override { remove_all(folder_); }

  Result<void> read(std::string_view content) {
    const std::string path = folder_ + "/snowd.toml";
    EXPECT_TRUE(write_file(path, content));
    return read_settings(settings_, path);
  }

  std::string folder_;
  Settings settings_;
};

TEST_F(SettingsFile, SetsWhatItNames) {
  const auto result = read(R"(
# a comment
state_dir = "/srv/snow"
memory_limit = "64G"
vm_limit = 100
use_resend = false
)");
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(settings_.state_dir, "/srv/snow");
  EXPECT_EQ(settings_.memory_limit_bytes, uint64_t{64} << 30);
  EXPECT_EQ(settings_.vm_limit, 100u);
  EXPECT_FALSE(settings_.use_resend);
  EXPECT_EQ(settings_.run_dir, "/run/snow");
}

TEST_F(SettingsFile, ErrorsNameFileLineAndKey) {
  auto result = read("vm_limit = 1\nvm_limits = 2\n");
  EXPECT_EQ(result.error().code, Code::usage);
  EXPECT_NE(result.error().message.find("snowd.toml:2: setting 'vm_limits': unknown"),
            std::string::npos)
      << result.error().message;
  result = read("\n\nfork_limit = 0\n");
  EXPECT_NE(result.error().message.find("snowd.toml:3: fork_limit 0: must be 1"), std::string::npos)
      << result.error().message;
  EXPECT_FALSE(read("fork_limit = [1]\n"));
  EXPECT_FALSE(read("fork_limit = \n"));
  EXPECT_FALSE(read("[fork]\nlimit = 1\n"));
  EXPECT_EQ(read_settings(settings_, folder_ + "/missing").error().code, Code::not_found);
}

TEST(Settings, ValuesAreChecked) {
  Settings settings;
  EXPECT_TRUE(set_setting(settings, "keeper", ""));
  EXPECT_FALSE(set_setting(settings, "state_dir", ""));
  EXPECT_FALSE(set_setting(settings, "run_dir", "here"));
  EXPECT_FALSE(set_setting(settings, "uid_base", "0"));
  EXPECT_FALSE(set_setting(settings, "use_resend", "perhaps"));
  EXPECT_FALSE(set_setting(settings, "memory_limit", "lots"));
  EXPECT_TRUE(set_setting(settings, "api_group", ""));
  EXPECT_TRUE(set_setting(settings, "fill_rate_bytes", "100M"));
  EXPECT_EQ(settings.fill_rate_bytes, 100u << 20);
  EXPECT_FALSE(set_setting(settings, "lease_seconds", "2"));
  EXPECT_TRUE(set_setting(settings, "multicast", "off"));
  EXPECT_FALSE(settings.multicast);
}

TEST(Settings, EachIsDocumented) {
  const auto document = read_file(SNOW_SOURCE_DIR "/docs/settings.md");
  ASSERT_TRUE(document) << document.error().message;
  for (const std::string& key : setting_keys()) {
    EXPECT_NE(document->find("| `" + key + "` |"), std::string::npos) << key;
  }
}

}  // namespace
}  // namespace snow
