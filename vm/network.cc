#include "vm/network.h"

#include <cstddef>

#include "base/file.h"

namespace snow {
namespace {

constexpr std::string_view kPrefix = "52:54:";

// 52:54:xx:xx:xx:xx in lower case.
bool is_ours(const std::string& address) {
  if (address.size() != 17 || !address.starts_with(kPrefix)) return false;
  for (size_t i = 0; i < address.size(); ++i) {
    const char c = address[i];
    const bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
    if (i % 3 == 2 ? c != ':' : !hex) return false;
  }
  return true;
}

}  // namespace

std::string MacPool::take() {
  const std::lock_guard lock(mutex_);
  for (;;) {
    std::string address(kPrefix);
    const std::string hex = random_hex(4);
    for (size_t i = 0; i < hex.size(); i += 2) {
      if (i > 0) address += ':';
      address.append(hex, i, 2);
    }
    if (taken_.insert(address).second) return address;
  }
}

Result<void> MacPool::claim(const std::string& address) {
  if (!is_ours(address)) {
    return fail(Code::invalid, "MAC address '{}' is not of the form 52:54:xx:xx:xx:xx", address);
  }
  const std::lock_guard lock(mutex_);
  if (!taken_.insert(address).second) {
    return fail(Code::exists, "MAC address '{}' belongs to another VM", address);
  }
  return {};
}

void MacPool::give_back(const std::string& address) {
  const std::lock_guard lock(mutex_);
  taken_.erase(address);
}

}  // namespace snow
