#include "vm/network_guard.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/process.h"

namespace snow {
namespace {

TEST(NetworkGuard, EachRunFolderHasATableOfItsOwn) {
  EXPECT_EQ(NetworkGuard("/run/snow", 700000).table(), "thundersnow_2frun_2fsnow");
  EXPECT_NE(NetworkGuard("/run/a_b", 700000).table(), NetworkGuard("/run/a/b", 700000).table());
  EXPECT_NE(NetworkGuard("/run/snow", 700000).rules().find("skuid 700000-765535"),
            std::string::npos);
}

bool there(const NetworkGuard& guard) {
  const auto listed = run_process({"nft", "list", "table", "inet", guard.table()});
  return listed && listed->exit_code == 0;
}

TEST(NetworkGuard, TableComesAndGoes) {
  if (::geteuid() != 0) GTEST_SKIP() << "nftables needs root";
  if (!run_process({"nft", "--version"})) GTEST_SKIP() << "nft is not installed";
  NetworkGuard guard("/run/snow-guard-test-" + std::to_string(::getpid()), 700000);
  const auto made = guard.ensure();
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_TRUE(there(guard));
  EXPECT_TRUE(guard.ensure());
  guard.remove();
  EXPECT_FALSE(there(guard));
  guard.remove();  // nothing there: fine
}

}  // namespace
}  // namespace snow
