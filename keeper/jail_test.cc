// What a process in the jail is, sees and can do. Each test runs a small script in a real jail.
#include <gmock/gmock.h>
#include <sys/mount.h>
#include <sys/un.h>

#include <filesystem>

#include "keeper/test_keeper.h"

namespace snow {
namespace {

using testing::HasSubstr;

class Jail : public KeeperTest {
 protected:
  // /proc is not there, so the process reads itself through the one thing that we bind.
  [[nodiscard]] SpawnSpec with_proc(SpawnSpec made) const {
    made.binds.push_back({"/proc", "/proc", false});
    return made;
  }
  [[nodiscard]] bool root_is_gone(const std::string& id) const {
    return !std::filesystem::exists(run_dir_ + "/root-" + id);
  }
};

TEST_F(Jail, RunsAsItsOwnUserWithoutRights) {
  // The shell reads /proc with its builtin, so that $$ is the jailed process itself.
  const auto out = output_of(
      with_proc(shell("a", "while read l; do echo \"$l\"; done < /proc/$$/status; umask")));
  EXPECT_THAT(out, HasSubstr("Uid:\t71234\t71234\t71234\t71234"));
  EXPECT_THAT(out, HasSubstr("Gid:\t71234\t71234\t71234\t71234"));
  EXPECT_THAT(out, testing::ContainsRegex("Groups:[\t ]*\n"));
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
    EXPECT_THAT(out, HasSubstr(std::string(set) + ":\t0000000000000000"));
  }
  EXPECT_THAT(out, HasSubstr("NoNewPrivs:\t1"));
  EXPECT_THAT(out, HasSubstr("SigBlk:\t0000000000000000"));
  EXPECT_THAT(out, HasSubstr("SigIgn:\t0000000000000000"));
  EXPECT_THAT(out, HasSubstr("0077"));
  EXPECT_TRUE(root_is_gone("a"));
}

TEST_F(Jail, SeesOnlyWhatItIsGiven) {
  const auto out =
      output_of(shell("a", "cd /; echo *; cd /etc; echo *; cd /dev; echo *; hostname"));
  EXPECT_THAT(out, HasSubstr("dev etc"));
  for (const char* absent : {"root", "home", "proc", "sys", "tmp", "var", "run", "resolv", "kvm"}) {
    EXPECT_THAT(out, testing::Not(HasSubstr(absent)));
  }
  EXPECT_THAT(out, HasSubstr("\nld.so.cache\n"));
  EXPECT_THAT(out, HasSubstr("\nfull null random urandom zero\n"));
  EXPECT_THAT(out, HasSubstr("\na\n"));
}

TEST_F(Jail, WritesNowhere) {
  const auto out = output_of(shell(
      "a",
      "for d in / /etc /dev /usr /usr/bin /lib; do (: > $d/x) 2>/dev/null && echo wrote $d; done;"
      "echo hello > /dev/null && head -c 4 /dev/zero | wc -c; echo end"));
  EXPECT_EQ(out, "4\nend\n");
}

TEST_F(Jail, BindsAreReadOnlyUnlessTheySayWritable) {
  const std::string folder = run_dir_ + "/shared";
  ASSERT_TRUE(make_folders(folder, 0777));
  ASSERT_EQ(::chmod(folder.c_str(), 0777), 0);
  ASSERT_TRUE(write_file(run_dir_ + "/file", "content\n", 0666));
  auto made = shell("a",
                    "cat /vm/deep/file; (echo x > /vm/deep/file) 2>/dev/null && echo wrote file;"
                    "(: > /vm/ro/x) 2>/dev/null && echo wrote ro; echo out > /vm/rw/x; echo end");
  made.binds = {{run_dir_ + "/file", "/vm/deep/file", false},
                {folder, "/vm/rw", true},
                {folder, "/vm/ro", false}};
  EXPECT_EQ(output_of(made), "content\nend\n");
  EXPECT_EQ(read_file(folder + "/x").value_or(""), "out\n");
  struct stat status {};
  ASSERT_EQ(::stat((folder + "/x").c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 71234u);
}

TEST_F(Jail, HasANetworkOfItsOwnUnlessShared) {
  const std::string script = "while read a b; do echo \"$a\"; done < /proc/$$/net/dev";
  EXPECT_EQ(output_of(with_proc(shell("a", script))), "Inter-|\nface\nlo:\n");
  auto shared = shell("b", "[ -e /etc/hosts ] && echo hosts; readlink /proc/$$/ns/net");
  shared.share_network = true;
  char own[64] = {};
  ASSERT_GT(::readlink("/proc/self/ns/net", own, sizeof own - 1), 0);
  EXPECT_EQ(output_of(with_proc(shared)), std::string("hosts\n") + own + "\n");
}

TEST_F(Jail, GetsKvmOnlyIfAsked) {
  if (::access("/dev/kvm", F_OK) != 0) GTEST_SKIP() << "no /dev/kvm on this host";
  auto made = shell("a", "stat -c '%u %a %t:%T' /dev/kvm; : < /dev/kvm && echo opened");
  made.kvm = true;
  EXPECT_EQ(output_of(made), "71234 600 a:e8\nopened\n");
}

TEST_F(Jail, InheritsNoDescriptorAndNoSecretOfTheEnvironment) {
  ::setenv("SNOW_TEST_SECRET", "x", 1);
  const auto out = output_of(with_proc(shell(
      "a", "for i in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$i ] && echo fd$i; done; env")));
  ::unsetenv("SNOW_TEST_SECRET");
  EXPECT_THAT(out, HasSubstr("fd0\nfd1\nfd2\nHOME"));
  EXPECT_THAT(out, testing::Not(HasSubstr("SNOW_TEST_SECRET")));
}

TEST_F(Jail, MissingProgramIsAnError) {
  const auto pid = keeper_->spawn(spec("a", {"/usr/bin/no-such-program"}));
  ASSERT_FALSE(pid);
  EXPECT_EQ(pid.error().code, Code::not_found);
  EXPECT_THAT(pid.error().message, HasSubstr("/usr/bin/no-such-program"));
  EXPECT_TRUE(root_is_gone("a"));
  EXPECT_TRUE(keeper_->list()->empty());
}

TEST_F(Jail, MissingSourceOfABindIsAnError) {
  auto made = shell("a", "true");
  made.binds = {{run_dir_ + "/absent", "/vm/absent", false}};
  const auto pid = keeper_->spawn(made);
  ASSERT_FALSE(pid);
  EXPECT_EQ(pid.error().code, Code::not_found);
  EXPECT_THAT(pid.error().message, HasSubstr("/absent"));
  EXPECT_TRUE(root_is_gone("a"));
}

TEST_F(Jail, RootUserIsRefused) {
  auto made = shell("a", "true");
  made.uid = 0;
  const auto pid = keeper_->spawn(made);
  ASSERT_FALSE(pid);
  EXPECT_EQ(pid.error().code, Code::invalid);
}

// A VM that owns a folder could otherwise let the keeper, as root, bind what it likes.
TEST_F(Jail, SymbolicLinksOnTheWayToASourceAreRefused) {
  ASSERT_TRUE(make_folders(run_dir_ + "/folder"));
  ASSERT_EQ(::symlink("/etc", (run_dir_ + "/folder/link").c_str()), 0);
  for (const char* source : {"/folder/link", "/folder/link/passwd"}) {
    auto made = shell("a", "true");
    made.binds = {{run_dir_ + source, "/vm/x", false}};
    const auto pid = keeper_->spawn(made);
    ASSERT_FALSE(pid) << source;
    EXPECT_EQ(pid.error().code, Code::denied);
  }
}

// The same the other way: a target below a writable bind does not lead out of the jail.
TEST_F(Jail, TargetsAreMadeWithoutFollowingLinks) {
  ASSERT_TRUE(make_folders(run_dir_ + "/mine"));
  ASSERT_TRUE(make_folders(run_dir_ + "/outside"));
  ASSERT_EQ(::symlink((run_dir_ + "/outside").c_str(), (run_dir_ + "/mine/link").c_str()), 0);
  ASSERT_TRUE(write_file(run_dir_ + "/file", "x"));
  auto made = shell("a", "true");
  made.binds = {{run_dir_ + "/mine", "/vm", true}, {run_dir_ + "/file", "/vm/link/file", false}};
  EXPECT_FALSE(keeper_->spawn(made));
  EXPECT_TRUE(std::filesystem::is_empty(run_dir_ + "/outside"));
}

TEST_F(Jail, LeavesNoMountOnTheHost) {
  const auto pid = keeper_->spawn(spec("a", {"/usr/bin/sleep", "1000"}));
  ASSERT_TRUE(pid) << pid.error().message;
  EXPECT_THAT(read_file("/proc/self/mountinfo").value(), testing::Not(HasSubstr(run_dir_)));
  ASSERT_TRUE(keeper_->kill(*pid));
  EXPECT_EQ(exits_.wait(*pid), SIGKILL);
  EXPECT_TRUE(root_is_gone("a"));
}

// The real thing: QEMU with its own sandbox on, memory in a bound file, its control socket in a
// bound folder, and no /proc.
TEST_F(Jail, QemuRunsInItAndAnswers) {
  const std::string qemu = "/usr/bin/qemu-system-x86_64";
  if (::access(qemu.c_str(), X_OK) != 0) GTEST_SKIP() << qemu << " is not installed";
  const std::string folder = run_dir_ + "/run";
  ASSERT_TRUE(make_folders(folder, 0700));
  ASSERT_EQ(::chown(folder.c_str(), 71234, 71234), 0);
  ASSERT_TRUE(write_file(run_dir_ + "/ram", "", 0600));
  ASSERT_EQ(::truncate((run_dir_ + "/ram").c_str(), 64 << 20), 0);
  ASSERT_EQ(::chown((run_dir_ + "/ram").c_str(), 71234, 71234), 0);
  auto made = spec("q", {qemu, "-M", "microvm,memory-backend=ram", "-accel", "tcg", "-m", "64M",
                         "-S", "-nodefaults", "-no-user-config", "-display", "none", "-sandbox",
                         "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
                         "-object", "memory-backend-file,id=ram,size=64M,mem-path=/vm/ram,share=on",
                         "-qmp", "unix:/vm/run/qmp.sock,server=on,wait=off"});
  made.binds = {{folder, "/vm/run", true}, {run_dir_ + "/ram", "/vm/ram", true}};
  const auto pid = keeper_->spawn(made);
  ASSERT_TRUE(pid) << pid.error().message;
  Fd socket;
  ASSERT_TRUE(eventually([&] {
    auto connected = connect_unix(folder + "/qmp.sock");
    if (connected) socket = std::move(*connected);
    return socket.valid() || !is_running(*pid);
  }));
  ASSERT_TRUE(socket.valid()) << log_of("q");
  char greeting[512] = {};
  ASSERT_GT(::read(socket.get(), greeting, sizeof greeting - 1), 0);
  EXPECT_THAT(greeting, HasSubstr("QMP"));
  ASSERT_TRUE(keeper_->kill(*pid));
  EXPECT_EQ(exits_.wait(*pid), SIGKILL);
}

}  // namespace
}  // namespace snow
