#include <gtest/gtest.h>

#include "guest/agent/freezer.h"
#include "guest/agent/identity.h"
#include "guest/agent/program.h"

namespace snow::guest {
namespace {

constexpr const char* kPasswd =
    "root:x:0:0:root:/root:/bin/bash\nbroken line\nann:x:1000:1001:Ann:/home/ann:\n";
constexpr const char* kGroup = "root:x:0:\nwheel:x:10:bob,ann\nann:x:1001:ann\n";

TEST(FindUser, ByNameAndByNumberWithGroups) {
  for (const char* name : {"ann", "1000"}) {
    const auto user = find_user(name, kPasswd, kGroup);
    ASSERT_TRUE(user) << name;
    EXPECT_EQ(user->uid, 1000u);
    EXPECT_EQ(user->groups, (std::vector<gid_t>{1001, 10}));
    EXPECT_EQ(user->home, "/home/ann");
    EXPECT_EQ(user->shell, "/bin/sh");
  }
  EXPECT_FALSE(find_user("nobody-here", kPasswd, kGroup));
  EXPECT_FALSE(find_user("root", "", ""));
}

TEST(ShellQuote, LeavesTheHarmlessAlone) {
  EXPECT_EQ(shell_quote("a-b_c/1.2"), "a-b_c/1.2");
  EXPECT_EQ(shell_quote(""), "");
  EXPECT_EQ(shell_quote("a b"), "'a b'");
  EXPECT_EQ(shell_quote("it's $HOME"), "'it'\\''s $HOME'");
}

TEST(Params, AreLinesThatAShellCanSource) {
  const std::string text = params_text({{"index", "3"},
                                        {"name", "web 1"},
                                        {"param.A", "b c"},
                                        {"param.x-y", "z"},
                                        {"entropy", std::string(64, '\0')}});
  EXPECT_NE(text.find("SNOW_INDEX=3\n"), std::string::npos);
  EXPECT_NE(text.find("SNOW_NAME='web 1'\n"), std::string::npos);
  EXPECT_NE(text.find("PARAM_A='b c'\n"), std::string::npos);
  EXPECT_NE(text.find("PARAM_x_y=z\n"), std::string::npos);
  EXPECT_EQ(text.find("entropy"), std::string::npos);
}

// A kernel thread in the cgroup snow-guest kept it from ever being frozen.
TEST(KernelThread, IsToldFromAProcess) {
  EXPECT_FALSE(is_kernel_thread("self"));
  EXPECT_FALSE(is_kernel_thread("no such process"));
  if (read_small_file("/proc/2/comm").value_or("") != "kthreadd\n") {
    GTEST_SKIP() << "no kernel thread can be seen in this PID namespace";
  }
  EXPECT_TRUE(is_kernel_thread("2"));
}

TEST(Mac, RefusesWhatIsNoAddress) {
  EXPECT_NE(set_mac("not a mac"), "");
  EXPECT_NE(set_mac("52:54:00"), "");
}

TEST(Split, KeepsEmptyParts) {
  EXPECT_EQ(split("a::b", ':'), (std::vector<std::string>{"a", "", "b"}));
  EXPECT_EQ(split("", ':'), (std::vector<std::string>{""}));
}

}  // namespace
}  // namespace snow::guest
