#include "lazyfs/file_table.h"

#include <algorithm>
#include <charconv>

namespace snow {

std::string file_name(uint64_t number) { return fmt::format("{:x}", number); }

std::optional<uint64_t> number_of_name(std::string_view name) {
  uint64_t number = 0;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data(), end, number, 16);
  if (error != std::errc() || stop != end || file_name(number) != name) return std::nullopt;
  return number;
}

bool LazyFile::bind(std::shared_ptr<Content> content) {
  const std::lock_guard lock(bind_mutex_);
  if (owner_) return false;
  owner_ = std::move(content);
  content_.store(owner_.get(), std::memory_order_release);
  return true;
}

void LazyFile::count_read(uint64_t bytes, bool zeros, uint64_t latency_ns) {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  const uint64_t index = reads_.fetch_add(1, kRelaxed);
  latencies_ns_[index % kLatencies].store(latency_ns, kRelaxed);
  bytes_.fetch_add(bytes, kRelaxed);
  if (zeros) zero_bytes_.fetch_add(bytes, kRelaxed);
}

FileStatistics LazyFile::statistics() const {
  FileStatistics result;
  result.reads = reads_;
  result.bytes = bytes_;
  result.zero_bytes = zero_bytes_;
  result.stored_bytes = stored_bytes;
  result.waiting = waiting;
  std::vector<uint64_t> sorted(std::min<uint64_t>(result.reads, kLatencies));
  if (sorted.empty()) return result;
  for (size_t i = 0; i < sorted.size(); ++i) sorted[i] = latencies_ns_[i];
  std::sort(sorted.begin(), sorted.end());
  result.latency_p50_ns = sorted[sorted.size() / 2];
  result.latency_p99_ns = sorted[sorted.size() * 99 / 100];
  return result;
}

Result<void> FileTable::add(uint64_t number, uint64_t size, bool inherited) {
  constexpr uint64_t kLimit = INT64_MAX;  // the kernel's offsets (and ours in folders) are signed
  if (number <= 1 || number > kLimit || size > kLimit) {
    return fail(Code::invalid, "lazy file {:x} of {} bytes: number or size out of range", number,
                size);
  }
  auto file = std::make_shared<LazyFile>(number, size, inherited);
  const std::lock_guard lock(mutex_);
  const auto [place, inserted] = files_.emplace(number, std::move(file));
  if (!inserted) {
    return fail(Code::exists, "lazy file {:x}: the number is taken{}", number,
                place->second->removed_ ? " by a removed file that is still in use" : "");
  }
  return {};
}

std::shared_ptr<LazyFile> FileTable::find(uint64_t number) const {
  const std::shared_lock lock(mutex_);
  const auto found = files_.find(number);
  return found == files_.end() ? nullptr : found->second;
}

std::shared_ptr<LazyFile> FileTable::find_named(uint64_t number) const {
  auto file = find(number);
  return file && !file->removed_ ? file : nullptr;
}

std::shared_ptr<LazyFile> FileTable::look_up(uint64_t number) {
  const std::shared_lock lock(mutex_);
  const auto found = files_.find(number);
  if (found == files_.end() || found->second->removed_) return nullptr;
  ++found->second->lookups_;
  return found->second;
}

std::shared_ptr<LazyFile> FileTable::take_name(uint64_t number) {
  const std::lock_guard lock(mutex_);
  const auto found = files_.find(number);
  if (found == files_.end() || found->second->removed_.exchange(true)) return nullptr;
  return found->second;
}

bool FileTable::forget(LazyFile& file, int64_t lookups) {
  const int64_t left = file.lookups_.fetch_sub(lookups) - lookups;
  return left <= 0 && file.removed_;
}

void FileTable::drop(const std::shared_ptr<LazyFile>& file) {
  const std::lock_guard lock(mutex_);
  const auto found = files_.find(file->number);
  if (found != files_.end() && found->second == file) files_.erase(found);
}

std::vector<uint64_t> FileTable::list(uint64_t after, size_t limit) const {
  std::vector<uint64_t> numbers;
  const std::shared_lock lock(mutex_);
  for (auto at = files_.upper_bound(after); at != files_.end() && numbers.size() < limit; ++at) {
    if (!at->second->removed_) numbers.push_back(at->first);
  }
  return numbers;
}

std::vector<std::shared_ptr<LazyFile>> FileTable::all() const {
  std::vector<std::shared_ptr<LazyFile>> files;
  const std::shared_lock lock(mutex_);
  for (const auto& [number, file] : files_) files.push_back(file);
  return files;
}

}  // namespace snow
