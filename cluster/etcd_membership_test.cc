// Membership over a real etcd, with its thread and the real clock: an etcd that hangs, that dies
// for a while, a daemon that is stopped. And two hosts that fight over a VM across all that.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <thread>

#include "cluster/members.h"
#include "cluster/membership.h"
#include "cluster/ownership.h"
#include "cluster/test_etcd.h"

namespace snow {
namespace {

constexpr const char* kA = "h0000000000aa";
constexpr const char* kB = "h0000000000bb";
constexpr unsigned kLeaseSeconds = 3;

bool eventually(const std::function<bool()>& holds, int seconds = 60) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

Membership::Options options(const std::string& id) {
  Membership::Options options;
  options.id = id;
  options.address = "127.0.0.1:7001";
  options.session = "session-" + id;
  options.lease_seconds = kLeaseSeconds;
  return options;
}

class EtcdMembershipTest : public testing::Test {
 protected:
  EtcdMembershipTest() {
    for (const char* id : {kA, kB}) {
      Member member;
      member.id = id;
      member.name = std::string("host-") + id[12];
      EXPECT_TRUE(add_member(*directory_, member));
    }
  }
  // As a daemon of our hosts would be set: its calls must fit into its lease.
  std::unique_ptr<EtcdDirectory> impatient() const {
    EtcdOptions settings = etcd_.options();
    settings.timeout_ms = 500;
    return std::move(EtcdDirectory::make(settings).value());
  }
  TestEtcd etcd_;
  std::unique_ptr<EtcdDirectory> directory_ = etcd_.directory();
};

TEST_F(EtcdMembershipTest, AHangingEtcdFencesAndItComesBackByItself) {
  const auto mine = impatient();
  std::atomic<int> fenced{0};
  std::atomic<int> backs{0};
  Membership a(*mine, options(kA),
               {[&](const std::string&) { ++fenced; },
                [&]() -> Result<void> {
                  ++backs;
                  return {};
                }});
  ASSERT_TRUE(a.start());
  EXPECT_FALSE(a.fenced());
  etcd_.signal(SIGSTOP);
  const int64_t stopped = lease_clock_ns();
  ASSERT_TRUE(eventually([&] { return a.fenced(); }));
  EXPECT_LE(lease_clock_ns() - stopped, (kLeaseSeconds + 5) * kSecondNs);
  ASSERT_TRUE(eventually([&] { return fenced == 1; }));
  EXPECT_NE(a.trouble().find("no etcd answers"), std::string::npos) << a.trouble();
  etcd_.signal(SIGCONT);
  ASSERT_TRUE(eventually([&] { return !a.fenced(); }));
  EXPECT_EQ(backs, 2);
  EXPECT_EQ(a.generation(), 2u);
}

TEST_F(EtcdMembershipTest, AnEtcdThatWasDownForLongerThanTheLeaseIsFoundAgain) {
  const auto mine = impatient();
  Membership a(*mine, options(kA), {});
  ASSERT_TRUE(a.start());
  etcd_.kill();
  ASSERT_TRUE(eventually([&] { return a.fenced(); }));
  ASSERT_TRUE(etcd_.start());
  ASSERT_TRUE(eventually([&] { return !a.fenced(); }));
  EXPECT_EQ(a.generation(), 2u);
  EXPECT_EQ(a.trouble(), "");
}

TEST_F(EtcdMembershipTest, ADaemonThatStartsBeforeItsEtcdRegistersLater) {
  etcd_.kill();
  const auto mine = impatient();
  Membership a(*mine, options(kA), {});
  ASSERT_TRUE(a.start());
  EXPECT_TRUE(a.fenced());
  ASSERT_TRUE(etcd_.start());
  ASSERT_TRUE(eventually([&] { return !a.fenced(); }));
  a.leave();
  EXPECT_EQ(directory_->get(host_key(kA)).value(), std::nullopt);
}

TEST_F(EtcdMembershipTest, TheSecondDaemonWithOneIdIsRefused) {
  const auto mine = impatient();
  Membership first(*mine, options(kA), {});
  ASSERT_TRUE(first.start());
  Membership::Options other = options(kA);
  other.session = "another state folder";
  Membership second(*mine, other, {});
  const auto refused = second.start();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::exists);
  EXPECT_FALSE(first.fenced());
}

// A daemon in a process of its own, which is stopped for longer than its lease. Its VM is given up
// meanwhile; when it goes on it is fenced before it does anything, and finds the VM gone.
TEST_F(EtcdMembershipTest, AStoppedDaemonLosesItsVmsAndKnowsItBeforeItActs) {
  int pipes[2];
  ASSERT_EQ(::pipe(pipes), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto say = [&](char what) { (void)!::write(pipes[1], &what, 1); };
    const auto mine = impatient();
    Ownership ownership(*mine);
    std::atomic<bool> has_vm{true};
    Membership a(*mine, options(kA),
                 {[&](const std::string&) { say('f'); },
                  [&]() -> Result<void> {
                    SNOW_ASSIGN(const auto vms, ownership.mine(kA));
                    say(vms.empty() ? 'n' : 'o');  // none, or one
                    return {};
                  }});
    if (!a.start() || !ownership.claim({"x"}, kA)) ::_exit(1);
    say('r');  // ready
    for (;;) {
      ::usleep(1000);
      // What a daemon does before it starts a VM. It must never see itself in while it is not.
      if (a.fenced()) continue;
      const auto vm = ownership.owner("x");
      if (vm && *vm && (*vm)->state == VmRecord::State::lost && has_vm.exchange(false)) say('l');
    }
  }
  Fd said(pipes[0]);
  ::close(pipes[1]);
  const auto next = [&] {
    char what = 0;
    return ::read(said.get(), &what, 1) == 1 ? what : '-';
  };
  EXPECT_EQ(next(), 'n');
  EXPECT_EQ(next(), 'r');
  Ownership ownership(*directory_);
  EXPECT_EQ(ownership.give_up("x", 1).error().code, Code::wrong_state);  // it lives
  ::kill(child, SIGSTOP);
  EXPECT_TRUE(eventually([&] { return !directory_->get(host_key(kA)).value(); }));
  EXPECT_EQ(ownership.give_up("x", 1).value().generation, 2u);
  ::kill(child, SIGCONT);
  EXPECT_EQ(next(), 'f');
  EXPECT_EQ(next(), 'n');
  EXPECT_EQ(next(), 'l');
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST_F(EtcdMembershipTest, TwoHostsSeeEachOtherComeAndGo) {
  const auto mine = impatient();
  const auto others = impatient();
  Membership a(*mine, options(kA), {});
  auto b = std::make_unique<Membership>(*others, options(kB), Membership::Callbacks{});
  ASSERT_TRUE(a.start());
  ASSERT_TRUE(b->start());
  const auto sees_b = [&] {
    for (const auto& host : a.hosts()) {
      if (host.member.id == kB) return host.live.has_value();
    }
    return false;
  };
  EXPECT_TRUE(eventually(sees_b));
  b.reset();  // its daemon died; its lease goes on for a while
  EXPECT_TRUE(sees_b());
  EXPECT_TRUE(eventually([&] { return !sees_b(); }));
  EXPECT_FALSE(a.fenced());
  EXPECT_TRUE(eventually([&] {
    for (const auto& host : a.hosts()) {
      if (host.member.id == kB && host.gone_ns >= kLeaseSeconds * kSecondNs) return true;
    }
    return false;
  }));
}

}  // namespace
}  // namespace snow
