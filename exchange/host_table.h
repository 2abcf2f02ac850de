// Host ids as the small numbers that the decision core uses. Thread-safe; a number is never given
// to another host.
#pragma once

#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "exchange/core/types.h"

namespace snow::exchange {

class HostTable {
 public:
  // kNoHost when there are too many.
  HostNumber number(std::string_view name) {
    const std::lock_guard lock(mutex_);
    if (const auto at = numbers_.find(name); at != numbers_.end()) return at->second;
    if (names_.size() >= kNoHost) return kNoHost;
    names_.emplace_back(name);
    const auto number = static_cast<HostNumber>(names_.size() - 1);
    numbers_.emplace(names_.back(), number);
    return number;
  }
  // Valid as long as the table.
  [[nodiscard]] const std::string& name(HostNumber number) const {
    static const std::string kNone;
    const std::lock_guard lock(mutex_);
    return number < names_.size() ? names_[number] : kNone;
  }

 private:
  mutable std::mutex mutex_;
  std::deque<std::string> names_;
  std::map<std::string, HostNumber, std::less<>> numbers_;
};

}  // namespace snow::exchange
