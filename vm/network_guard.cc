#include "vm/network_guard.h"

#include <fmt/format.h>

#include <cctype>

#include "base/file.h"
#include "base/log.h"
#include "base/process.h"

namespace snow {
namespace {

constexpr unsigned kUsers = 65536;              // more than there can be QEMUs
constexpr int64_t kFreshNs = 1'000'000'000;     // not applied again so soon
constexpr int64_t kRefreshNs = 10'000'000'000;  // looked after so often

// Every path gives another name: what is no letter or digit is written as _ and its code.
std::string table_name(const std::string& run_dir) {
  std::string name = "thundersnow";
  for (const char byte : run_dir) {
    if (std::isalnum(static_cast<unsigned char>(byte)) != 0) {
      name += byte;
    } else {
      name += fmt::format("_{:02x}", static_cast<unsigned char>(byte));
    }
  }
  return name;
}

}  // namespace

NetworkGuard::NetworkGuard(const std::string& run_dir, uid_t uid_base)
    : table_(table_name(run_dir)), uid_base_(uid_base) {}

// Declared, deleted, made: in one transaction, whether or not it is there.
std::string NetworkGuard::rules() const {
  const std::string users = fmt::format("meta skuid {}-{}", uid_base_, uid_base_ + kUsers - 1);
  return fmt::format(
      "table inet {0}\n"
      "delete table inet {0}\n"
      "table inet {0} {{\n"
      "  chain output {{\n"
      "    type filter hook output priority 0; policy accept;\n"
      "    {1} oif \"lo\" meta l4proto {{ tcp, udp }} th dport 53 accept\n"
      "    {1} oif \"lo\" meta l4proto tcp reject with tcp reset\n"
      "    {1} oif \"lo\" reject\n"
      "  }}\n"
      "}}\n",
      table_, users);
}

Result<void> NetworkGuard::apply() {
  const auto done = run_process({"nft", rules()});
  if (!done || done->exit_code != 0) {
    return fail(Code::host_failed,
                "network 'user': cannot keep guests away from this host's own services: {}; "
                "install nftables, or use --net none",
                done ? "nft: " + done->standard_error : done.error().message);
  }
  applied_ns_ = monotonic_ns();
  return {};
}

Result<void> NetworkGuard::ensure() {
  const std::lock_guard lock(mutex_);
  if (applied_ns_ != 0 && monotonic_ns() - applied_ns_ < kFreshNs) return {};
  return apply();
}

void NetworkGuard::refresh() {
  const std::lock_guard lock(mutex_);
  if (applied_ns_ == 0 || monotonic_ns() - applied_ns_ < kRefreshNs) return;
  if (auto applied = apply(); !applied) {
    log_error("{}", applied.error().message);
    applied_ns_ = monotonic_ns();  // the next try at the next turn
  }
}

void NetworkGuard::remove() {
  const std::lock_guard lock(mutex_);
  (void)run_process({"nft", fmt::format("table inet {0}\ndelete table inet {0}\n", table_)});
  applied_ns_ = 0;
}

}  // namespace snow
