// Freeze and thaw with the real QEMU and a guest that would notice one stale page: machine state
// saved and loaded, memory mapped private over the frozen file, private pages found from outside
// and applied as the next generation.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "base/fd.h"
#include "base/process.h"
#include "qemu/machine_state.h"
#include "qemu/private_pages.h"
#include "qemu/test_qemu.h"

namespace snow {
namespace {

using testing::kCountersEnd;
using testing::kFirstCounter;
using testing::TestFolder;
using testing::TestQemu;

constexpr uint64_t kMemory = uint64_t{32} << 20;

struct Kind {
  const char* name;
  MachineType machine;
  Accelerator accelerator;
};

class Thaw : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (GetParam().accelerator == Accelerator::kvm && access("/dev/kvm", R_OK | W_OK) != 0)
      GTEST_SKIP() << "/dev/kvm does not open: " << strerror(errno);
    config_.machine = GetParam().machine;
    config_.accelerator = GetParam().accelerator;
    config_.memory_bytes = kMemory;
    config_.network = Network::user;
    config_.has_disk = true;
    config_.has_kernel = config_.machine == MachineType::microvm;
  }

  // What a VM's folder has, with `memory` (a file) or an empty memory for a first boot.
  void furnish(const TestFolder& folder, const std::string& memory = "") const {
    folder.write(JailPaths::kDisk, testing::counting_disk());
    folder.write(JailPaths::kKernel, testing::counting_kernel());
    const auto made =
        run_process({"qemu-img", "create", "-q", "-f", "qcow2", folder(JailPaths::kOverlay), "1M"});
    ASSERT_TRUE(made && made->exit_code == 0);
    if (memory.empty()) {
      folder.make_sparse(JailPaths::kMemory, kMemory);
    } else {
      std::filesystem::copy_file(memory, folder(JailPaths::kMemory));
    }
  }

  MachineConfig config_;
};

// The guest's counters, through the mapping of the memory file in the (stopped) QEMU.
std::vector<uint32_t> counters(pid_t pid, const TestFolder& folder) {
  // Shared or private, the address is the same distance from the file's offset.
  std::string maps = read_file(fmt::format("/proc/{}/maps", pid)).value();
  for (size_t at = 0; (at = maps.find(" rw-s ", at)) != std::string::npos;) maps[at + 4] = 'p';
  struct stat status {};
  EXPECT_EQ(stat(folder(JailPaths::kMemory).c_str(), &status), 0);
  const auto address = find_mapping(maps, status.st_ino, kMemory, status.st_dev);
  EXPECT_TRUE(address) << address.error().message;
  const Fd memory(open(fmt::format("/proc/{}/mem", pid).c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<uint32_t> values;
  for (uint64_t at = kFirstCounter; at < kCountersEnd; at += 4096) {
    uint32_t value = 0;
    EXPECT_EQ(pread(memory.get(), &value, sizeof value, static_cast<off_t>(*address + at)), 4);
    values.push_back(value);
  }
  return values;
}

bool consistent(const std::vector<uint32_t>& values) {
  size_t at = 0;
  while (at < values.size() && values[at] == values.front()) ++at;
  for (size_t rest = at; rest < values.size(); ++rest) {
    if (values[rest] + 1 != values.front()) return false;
  }
  return true;
}

void cont(Qmp& qmp) {
  const auto result = qmp.execute("cont");
  ASSERT_TRUE(result) << result.error().message;
}

void stop(Qmp& qmp) {
  const auto result = qmp.execute("stop");
  ASSERT_TRUE(result) << result.error().message;
}

// Milliseconds since `last_ns`, which becomes now.
double lap_ms(int64_t& last_ns) {
  const int64_t begin = std::exchange(last_ns, monotonic_ns());
  return static_cast<double>(last_ns - begin) / 1e6;
}

// Lets the guest run until it has counted beyond `past` and stops it: its counters.
std::vector<uint32_t> count_beyond(TestQemu& qemu, const TestFolder& folder, uint32_t past) {
  for (int attempt = 0; attempt < 600; ++attempt) {
    cont(qemu.qmp());
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    stop(qemu.qmp());
    std::vector<uint32_t> values = counters(qemu.pid(), folder);
    // A guest that is still zeroing or in its BIOS is not counting yet.
    if (consistent(values) && values.back() > past + 2) return values;
  }
  ADD_FAILURE() << "the guest does not count beyond " << past << "\n" << qemu.log();
  return {};
}

TEST_P(Thaw, GenerationsGoOnWithoutAStalePage) {
  const TestFolder first;
  furnish(first);
  std::vector<uint32_t> before;
  std::vector<std::byte> state;
  {
    TestQemu qemu(first, config_, Launch::Kind::boot);
    ASSERT_TRUE(qemu.connected()) << qemu.log();
    before = count_beyond(qemu, first, 10);
    // First freezes that are given up: the same QEMU goes on as if nothing had been saved.
    for (int round = 0; round < 3; ++round) {
      ASSERT_FALSE(before.empty());
      auto saved =
          save_machine_state(qemu.qmp(), first(JailPaths::kState), first(JailPaths::kState));
      ASSERT_TRUE(saved) << saved.error().message;
      EXPECT_FALSE(std::filesystem::exists(first(JailPaths::kState)));
      EXPECT_EQ(counters(qemu.pid(), first), before);
      state = *std::move(saved);
      if (round < 2) before = count_beyond(qemu, first, before.front());
    }
  }

  std::string frozen = first(JailPaths::kMemory);
  std::vector<std::unique_ptr<TestFolder>> folders;  // each generation's memory is the next's base
  for (int generation = 1; generation <= 2; ++generation) {
    SCOPED_TRACE(fmt::format("generation {}", generation));
    folders.push_back(std::make_unique<TestFolder>());
    const TestFolder& folder = *folders.back();
    furnish(folder, frozen);
    TestQemu qemu(folder, config_, Launch::Kind::thaw);
    ASSERT_TRUE(qemu.connected()) << qemu.log();
    auto incoming =
        open_incoming(qemu.qmp(), folder(JailPaths::kIncoming), folder(JailPaths::kIncoming));
    ASSERT_TRUE(incoming) << incoming.error().message << "\n" << qemu.log();
    int64_t last_ns = monotonic_ns();
    const auto loaded = load_machine_state(qemu.qmp(), *std::move(incoming), state, 60'000);
    ASSERT_TRUE(loaded) << loaded.error().message << "\n" << qemu.log();
    const double load_ms = lap_ms(last_ns);
    EXPECT_EQ(counters(qemu.pid(), folder), before);  // not a step lost, not one too many
    lap_ms(last_ns);
    cont(qemu.qmp());
    const double cont_ms = lap_ms(last_ns);
    before = count_beyond(qemu, folder, before.front());
    ASSERT_FALSE(before.empty());
    cont(qemu.qmp());
    lap_ms(last_ns);
    stop(qemu.qmp());
    const double stop_ms = lap_ms(last_ns);
    before = counters(qemu.pid(), folder);

    // The file is as it was; what the guest wrote is private, and by both methods the same.
    const std::string base = read_file(folder(JailPaths::kMemory)).value();
    EXPECT_TRUE(base == read_file(frozen).value());
    struct stat status {};
    ASSERT_EQ(stat(folder(JailPaths::kMemory).c_str(), &status), 0);
    const auto delta = find_private_pages(qemu.pid(), status.st_ino, kMemory, true, status.st_dev);
    ASSERT_TRUE(delta) << delta.error().message;
    const auto slow = find_private_pages(qemu.pid(), status.st_ino, kMemory, false, status.st_dev);
    ASSERT_TRUE(slow) << slow.error().message;
    EXPECT_EQ(delta->ranges, slow->ranges);
    EXPECT_GE(delta->bytes(), kCountersEnd - kFirstCounter);
    EXPECT_LT(delta->bytes(), kMemory / 2);

    lap_ms(last_ns);
    auto saved =
        save_machine_state(qemu.qmp(), folder(JailPaths::kState), folder(JailPaths::kState));
    ASSERT_TRUE(saved) << saved.error().message;
    state = *std::move(saved);
    // For the record; asserted nowhere, since test machines are noisy.
    printf("load %.2f, cont %.2f, stop %.2f, save %.2f ms; %zu bytes of state\n", load_ms, cont_ms,
           stop_ms, lap_ms(last_ns), state.size());
    // The delta over the base is the next generation's memory.
    const Fd memory(open(fmt::format("/proc/{}/mem", qemu.pid()).c_str(), O_RDONLY | O_CLOEXEC));
    frozen = folder.path() + "/frozen";
    std::filesystem::copy_file(folder(JailPaths::kMemory), frozen);
    const Fd next(open(frozen.c_str(), O_WRONLY | O_CLOEXEC));
    for (const Range& range : delta->ranges) {
      std::vector<std::byte> bytes(range.length);
      ASSERT_TRUE(read_all_at(memory.get(), delta->address + range.offset, bytes, "memory"));
      ASSERT_TRUE(write_all_at(next.get(), range.offset, bytes, frozen));
    }
  }
}

// Half a state, or another machine's, is refused, and quickly: not after the timeout.
TEST_P(Thaw, BrokenStateIsRefused) {
  const TestFolder folder;
  furnish(folder);
  TestQemu qemu(folder, config_, Launch::Kind::thaw);
  ASSERT_TRUE(qemu.connected()) << qemu.log();
  const std::vector<std::byte> garbage(5000, std::byte{0x51});
  auto incoming =
      open_incoming(qemu.qmp(), folder(JailPaths::kIncoming), folder(JailPaths::kIncoming));
  ASSERT_TRUE(incoming) << incoming.error().message;
  const auto loaded = load_machine_state(qemu.qmp(), *std::move(incoming), garbage, 60'000);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().code, Code::guest_failed) << loaded.error().message;
}

INSTANTIATE_TEST_SUITE_P(
    Machines, Thaw,
    ::testing::Values(Kind{"q35_tcg", MachineType::q35, Accelerator::tcg},
                      Kind{"microvm_tcg", MachineType::microvm, Accelerator::tcg},
                      Kind{"q35_kvm", MachineType::q35, Accelerator::kvm},
                      Kind{"microvm_kvm", MachineType::microvm, Accelerator::kvm}),
    [](const auto& kind) { return std::string(kind.param.name); });

}  // namespace
}  // namespace snow
