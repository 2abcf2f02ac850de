#include "qemu/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/process.h"
#include "qemu/host_clock.h"
#include "qemu/test_qemu.h"

namespace snow {
namespace {

using ::testing::HasSubstr;
using testing::TestFolder;
using testing::TestQemu;

MachineConfig full(MachineType machine) {
  MachineConfig config;
  config.machine = machine;
  config.memory_bytes = 64u << 20;
  config.cpus = 2;
  config.network = Network::user;
  config.has_disk = config.has_kernel = config.has_initrd = true;
  config.append = "console=ttyS0 key=\"a,b\"";
  return config;
}

TEST(MachineConfig, JsonBothWays) {
  for (const MachineType machine : {MachineType::microvm, MachineType::q35}) {
    const nlohmann::json json = to_json(full(machine));
    const auto back = machine_config_from_json(json);
    ASSERT_TRUE(back) << back.error().message;
    EXPECT_EQ(to_json(*back), json);
  }
}

TEST(MachineConfig, RefusesWhatIsMissingMistypedUnknownOrOutOfRange) {
  const nlohmann::json good = to_json(full(MachineType::q35));
  for (const auto& item : good.items()) {
    nlohmann::json without = good;
    without.erase(item.key());
    EXPECT_FALSE(machine_config_from_json(without)) << item.key();
    nlohmann::json mistyped = good;
    mistyped[item.key()] = nlohmann::json::array();
    EXPECT_FALSE(machine_config_from_json(mistyped)) << item.key();
  }
  const std::vector<std::pair<const char*, nlohmann::json>> bad = {
      {"machine", "pc"},
      {"accelerator", "auto"},
      {"network", "bridge"},
      {"memory_bytes", 0},
      {"memory_bytes", -1},
      {"memory_bytes", (64u << 20) + 4096},
      {"cpus", 0},
      {"cpus", 65},
      {"cpus", 4294967297u * 1ull + 4294967295u},
      {"append", std::string(kMaxAppend + 1, 'x')},
      {"append", "a\nb"},
      {"newer", true}};
  for (const auto& [field, value] : bad) {
    nlohmann::json json = good;
    json[field] = value;
    EXPECT_FALSE(machine_config_from_json(json)) << field << " " << value;
  }
  EXPECT_FALSE(machine_config_from_json(nlohmann::json::array()));
}

TEST(MachineConfig, MicrovmNeedsAKernel) {
  MachineConfig config;
  const auto checked = check(config);
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().code, Code::invalid);
  EXPECT_THAT(checked.error().message, HasSubstr("needs a kernel"));
  config.has_kernel = true;
  EXPECT_TRUE(check(config));
}

// Every device and option is one that this QEMU has, at boot and at a thaw, in its sandbox.
TEST(CommandLine, QemuTakesIt) {
  for (const MachineType machine : {MachineType::microvm, MachineType::q35}) {
    const TestFolder folder;
    const MachineConfig config = full(machine);
    folder.make_sparse(JailPaths::kMemory, config.memory_bytes);
    folder.make_sparse(JailPaths::kDisk, 1 << 20);
    folder.write(JailPaths::kKernel, testing::counting_kernel());
    folder.write(JailPaths::kInitrd, "initrd");
    const auto made =
        run_process({"qemu-img", "create", "-q", "-f", "qcow2", folder(JailPaths::kOverlay), "1M"});
    ASSERT_TRUE(made && made->exit_code == 0);
    for (const Launch::Kind kind : {Launch::Kind::boot, Launch::Kind::thaw}) {
      TestQemu qemu(folder, config, kind);
      ASSERT_TRUE(qemu.connected()) << qemu.log();
      const auto status = qemu.qmp().execute("query-status");
      ASSERT_TRUE(status);
      EXPECT_EQ((*status)["status"], kind == Launch::Kind::boot ? "prelaunch" : "inmigrate");
      EXPECT_EQ(qemu.log(), "");  // no warning either
      const auto blocks = qemu.qmp().execute("query-named-block-nodes");
      ASSERT_TRUE(blocks);
      for (const auto& node : *blocks) {
        const bool overlay = node["node-name"].get<std::string>().starts_with("overlay");
        EXPECT_EQ(node["ro"], !overlay) << node["node-name"];
      }
      EXPECT_TRUE(std::filesystem::is_socket(folder(JailPaths::kAgent)));
      EXPECT_TRUE(std::filesystem::is_socket(folder(JailPaths::kConsole)));
    }
  }
}

// At boot and thaw the same hardware: nothing differs but the memory's sharing and -incoming.
TEST(CommandLine, ThawDiffersOnlyInSharingAndIncoming) {
  Launch launch;
  launch.name = "web";
  const auto boot = command_line("/usr/bin/qemu", full(MachineType::q35), launch);
  launch.kind = Launch::Kind::thaw;
  auto thaw = command_line("/usr/bin/qemu", full(MachineType::q35), launch);
  ASSERT_EQ(thaw.size(), boot.size() + 2);
  EXPECT_EQ(thaw.back(), "defer");
  thaw.resize(boot.size());
  for (size_t i = 0; i < boot.size(); ++i) {
    std::string expected = boot[i];
    const size_t at = expected.find("share=on");
    if (at != std::string::npos) expected.replace(at, 8, "share=off");
    EXPECT_EQ(thaw[i], expected);
  }
}

TEST(CommandLine, KernelIsToldTheClockRateUnderTcg) {
  const uint64_t khz = host_tsc_khz();
  EXPECT_GT(khz, 100'000u);
  EXPECT_LT(khz, 10'000'000u);
  MachineConfig config = full(MachineType::microvm);
  const auto has = [&](const std::string& append) {
    const auto arguments = command_line("/usr/bin/qemu", config, {});
    return std::find(arguments.begin(), arguments.end(), append) != arguments.end();
  };
  EXPECT_TRUE(has(fmt::format("tsc=reliable tsc_early_khz={} {}", khz, config.append)));
  config.accelerator = Accelerator::kvm;
  EXPECT_TRUE(has(config.append));
}

TEST(Accelerator, KvmOnlyWithHardwareAndDevice) {
  const char* intel = "flags\t\t: fpu vme vmx sse\nvmx flags\t: vnmi\n";
  EXPECT_EQ(choose_accelerator(intel, 0).accelerator, Accelerator::kvm);
  EXPECT_EQ(choose_accelerator("flags : svm\n", 0).accelerator, Accelerator::kvm);
  EXPECT_EQ(choose_accelerator("flags : svm_lock novmx\n", 0).accelerator, Accelerator::tcg);
  const AcceleratorChoice denied = choose_accelerator(intel, EACCES);
  EXPECT_EQ(denied.accelerator, Accelerator::tcg);
  EXPECT_THAT(denied.reason, HasSubstr("/dev/kvm: Permission denied"));
  EXPECT_THAT(choose_accelerator("", 0).reason, HasSubstr("no vmx or svm"));
  EXPECT_FALSE(choose_accelerator().reason.empty());
}

}  // namespace
}  // namespace snow
