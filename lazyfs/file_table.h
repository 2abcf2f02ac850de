// The files that lazyfs shows: number, size, content, counters; and how long each must be kept.
//
// A removed file stays until the kernel has forgotten it. The kernel counts its lookups of a file
// and forgets them together; so do we. A file that a daemon before this one showed (inherited) has
// lookups that we did not see: there the kernel is asked as well.
//
// Thread-safe. find() is on the path of every read and takes a shared lock only.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <vector>

#include "image/content.h"
#include "lazyfs/lazyfs.h"

namespace snow {

// The name of a file is its number in hexadecimal, lower case, without leading zeros.
std::string file_name(uint64_t number);
std::optional<uint64_t> number_of_name(std::string_view name);

class LazyFile {
 public:
  LazyFile(uint64_t number_in, uint64_t size_in, bool inherited_in)
      : number(number_in), size(size_in), inherited(inherited_in) {}

  const uint64_t number;
  const uint64_t size;
  const bool inherited;

  // Null while unbound. Valid as long as the file is.
  [[nodiscard]] Content* content() const { return content_.load(std::memory_order_acquire); }
  // False if the file was bound before.
  bool bind(std::shared_ptr<Content> content);

  void count_read(uint64_t bytes, bool zeros, uint64_t latency_ns);
  [[nodiscard]] FileStatistics statistics() const;  // without resident_bytes

  std::atomic<uint64_t> waiting = 0;
  std::atomic<uint64_t> stored_bytes = 0;
  std::atomic<bool> spoilt = false;  // written by somebody, and not yet dropped

 private:
  friend class FileTable;
  static constexpr size_t kLatencies = 1024;

  std::mutex bind_mutex_;
  std::shared_ptr<Content> owner_;
  std::atomic<Content*> content_ = nullptr;
  std::atomic<int64_t> lookups_ = 0;  // seen here; negative if an earlier daemon's are forgotten
  std::atomic<bool> removed_ = false;
  std::atomic<uint64_t> reads_ = 0;
  std::atomic<uint64_t> bytes_ = 0;
  std::atomic<uint64_t> zero_bytes_ = 0;
  std::array<std::atomic<uint64_t>, kLatencies> latencies_ns_{};  // a ring; reads_ is its head
};

class FileTable {
 public:
  // Code::exists also while a removed file of that number is still in use.
  Result<void> add(uint64_t number, uint64_t size, bool inherited);
  // Also removed files.
  [[nodiscard]] std::shared_ptr<LazyFile> find(uint64_t number) const;
  // Only files that have a name.
  [[nodiscard]] std::shared_ptr<LazyFile> find_named(uint64_t number) const;
  // The same, with one lookup counted for the kernel.
  std::shared_ptr<LazyFile> look_up(uint64_t number);
  // Takes the name away; nothing if there was none.
  std::shared_ptr<LazyFile> take_name(uint64_t number);
  // The kernel has forgotten `lookups` lookups. True: it may have forgotten the file altogether,
  // and the file is removed; if it really has, the caller drops it.
  static bool forget(LazyFile& file, int64_t lookups);
  void drop(const std::shared_ptr<LazyFile>& file);

  // At most `limit` numbers of named files above `after`, in order.
  [[nodiscard]] std::vector<uint64_t> list(uint64_t after, size_t limit) const;
  [[nodiscard]] std::vector<std::shared_ptr<LazyFile>> all() const;

 private:
  mutable std::shared_mutex mutex_;
  std::map<uint64_t, std::shared_ptr<LazyFile>> files_;
};

}  // namespace snow
