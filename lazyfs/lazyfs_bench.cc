// Prints what a page fault through lazyfs costs when it is answered from memory, what it costs when
// the page had been stored, and the rate of store(). `lazyfs_bench [MiB]`, as root.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "base/file.h"
#include "lazyfs/lazyfs.h"

namespace snow {
namespace {

class MemoryContent final : public Content {
 public:
  explicit MemoryContent(uint64_t size) : data_(size, std::byte{7}) {}
  [[nodiscard]] uint64_t size() const override { return data_.size(); }
  Result<void> read(uint64_t offset, std::span<std::byte> into) override {
    std::memcpy(into.data(), data_.data() + offset, into.size());
    return {};
  }
  [[nodiscard]] std::span<const std::byte> data() const { return data_; }

 private:
  const std::vector<std::byte> data_;
};

double fault_us(const std::string& path, uint64_t size) {
  const Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  auto* memory = static_cast<std::byte*>(
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd.get(), 0));
  if (memory == MAP_FAILED) return 0;
  madvise(memory, size, MADV_RANDOM);
  std::vector<uint64_t> pages(size / 4096);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
  unsigned sum = 0;
  const int64_t start = monotonic_ns();
  for (const uint64_t page : pages) sum += std::to_integer<unsigned>(memory[page * 4096]);
  const auto spent = static_cast<double>(monotonic_ns() - start);
  munmap(memory, size);
  return sum == pages.size() * 7 ? spent / 1000 / static_cast<double>(pages.size()) : 0;
}

Result<void> run(uint64_t size, LazyFs& fs) {
  SNOW_TRY(fs.start());
  const auto content = std::make_shared<MemoryContent>(size);
  SNOW_TRY(fs.add(2, size));
  SNOW_TRY(fs.bind(2, content));
  std::printf("4 KiB fault, answered from memory  %8.2f us\n", fault_us(fs.path(2), size));
  SNOW_ASSIGN(const auto statistics, fs.statistics(2));
  std::printf("  of that in the daemon: p50 %.2f us, p99 %.2f us; %lu reads\n",
              static_cast<double>(statistics.latency_p50_ns) / 1000,
              static_cast<double>(statistics.latency_p99_ns) / 1000, statistics.reads);
  SNOW_TRY(fs.add(3, size));
  SNOW_TRY(fs.bind(3, content));
  const int64_t start = monotonic_ns();
  SNOW_TRY(fs.store(3, 0, content->data()));
  std::printf("store                              %8.2f GB/s\n",
              static_cast<double>(size) / static_cast<double>(monotonic_ns() - start));
  std::printf("4 KiB fault of a stored page       %8.2f us\n", fault_us(fs.path(3), size));
  return {};
}

int main_of(uint64_t size) {
  char folder[] = "/tmp/snow-lazyfs-bench-XXXXXX";
  if (mkdtemp(folder) == nullptr) return 1;
  const Fd table(memfd_create("table", MFD_CLOEXEC));
  int result = 1;
  if (ftruncate(table.get(), static_cast<off_t>(lazyfs_table_bytes())) == 0) {
    LazyFs::Options options;
    options.mount_point = std::string(folder) + "/images";
    options.table_fd = table.get();
    auto fs = LazyFs::open(options);
    const auto done = fs ? run(size, **fs) : tl::unexpected(fs.error());
    if (fs) (*fs)->unmount();
    if (!done) std::fprintf(stderr, "%s\n", done.error().message.c_str());
    result = done ? 0 : 1;
  }
  remove_all(folder);
  return result;
}

}  // namespace
}  // namespace snow

int main(int argc, char** argv) {
  const uint64_t mebibytes = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 256;
  return snow::main_of(std::max<uint64_t>(mebibytes, 1) << 20);
}
