// MAC addresses of the VMs of this host: locally administered (52:54:...), no two alike.
// Thread-safe.
#pragma once

#include <mutex>
#include <set>
#include <string>

#include "base/result.h"

namespace snow {

class MacPool {
 public:
  std::string take();                              // a new one
  Result<void> claim(const std::string& address);  // one from the record; Code::exists if taken,
                                                   // Code::invalid if it is none of ours
  void give_back(const std::string& address);

 private:
  std::mutex mutex_;
  std::set<std::string> taken_;
};

}  // namespace snow
