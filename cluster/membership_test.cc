// Membership, driven by hand over a clock that stands still: registration, renewal, fencing, the
// way back, what is seen of the others.
#include "cluster/membership.h"

#include <gtest/gtest.h>

#include <map>

#include "cluster/test_directory.h"

namespace snow {
namespace {

constexpr const char* kA = TestCluster::kA;
constexpr const char* kB = TestCluster::kB;

// A host's membership with what its callbacks were told.
struct Host {
  Host(Directory& directory, ManualClock& time, const std::string& id,
       const std::string& session = "session", const std::string& machine = "machine")
      : membership(directory, options(time, id, session, machine),
                   {[this](const std::string& why) { fenced_because.push_back(why); },
                    [this]() -> Result<void> {
                      ++backs;
                      EXPECT_TRUE(membership.fenced());  // until it has succeeded
                      return back();
                    }}) {}

  static Membership::Options options(ManualClock& time, const std::string& id,
                                     const std::string& session, const std::string& machine) {
    Membership::Options options;
    options.id = id;
    options.address = "127.0.0.1:7001";
    options.qemu = "7.2.22";
    options.accelerator = "tcg";
    options.capacity = {8ull << 30, 4, 100};
    options.session = session;
    options.machine = machine;
    options.lease_seconds = 9;
    options.clock = time.clock();
    return options;
  }

  std::vector<std::string> fenced_because;
  int backs = 0;
  std::function<Result<void>()> back = []() -> Result<void> { return {}; };
  Membership membership;
};

class MembershipTest : public testing::Test {
 protected:
  HostRecord record(const std::string& id) {
    return parse_host(*cluster_.directory->get(host_key(id)).value()).value();
  }
  bool registered(const std::string& id) {
    return cluster_.directory->get(host_key(id)).value().has_value();
  }
  static HostView view(const Membership& membership, const std::string& id) {
    for (const auto& one : membership.hosts()) {
      if (one.member.id == id) return one;
    }
    return {};
  }
  TestCluster cluster_;
  ManualClock& time_ = cluster_.time;
  FaultyDirectory faulty_{*cluster_.directory};
};

TEST_F(MembershipTest, AHostRegistersAndIsSeen) {
  Host a(faulty_, time_, kA);
  EXPECT_TRUE(a.membership.fenced());
  EXPECT_TRUE(a.membership.hosts().empty());
  EXPECT_EQ(a.membership.seen_ago_ns(), INT64_MAX);
  EXPECT_EQ(a.membership.tick(), 3 * kSecondNs);  // a third of the lease
  EXPECT_FALSE(a.membership.fenced());
  EXPECT_EQ(a.membership.trouble(), "");
  EXPECT_EQ(a.membership.lease_left_ns(), 9 * kSecondNs);
  EXPECT_EQ(a.backs, 1);
  const HostRecord seen = record(kA);
  EXPECT_EQ(seen.name, "host-a");
  EXPECT_EQ(seen.address, "127.0.0.1:7001");
  EXPECT_EQ(seen.qemu, "7.2.22");
  EXPECT_EQ(seen.capacity, (Resources{8ull << 30, 4, 100}));
  EXPECT_EQ(seen.generation, 1u);
  ASSERT_EQ(a.membership.hosts().size(), 3u);
  EXPECT_TRUE(view(a.membership, kA).live);
  EXPECT_FALSE(view(a.membership, kB).live);
}

TEST_F(MembershipTest, RenewalKeepsItAliveForAsLongAsItIsMade) {
  Host a(faulty_, time_, kA);
  for (int i = 0; i < 20; ++i) {
    a.membership.tick();
    time_.advance(3);
    EXPECT_FALSE(a.membership.fenced());
  }
  EXPECT_EQ(a.backs, 1);
  EXPECT_EQ(record(kA).generation, 1u);
}

TEST_F(MembershipTest, TheDeadlineCountsFromBeforeTheRequest) {
  Host a(faulty_, time_, kA);
  a.membership.tick();
  // Two seconds on each request's way back: the directory counts from two seconds later.
  faulty_.after_each = [&] { time_.advance(2); };
  a.membership.tick();
  // keep-alive, two lists.
  EXPECT_EQ(a.membership.lease_left_ns(), (9 - 3 * 2) * kSecondNs);
}

TEST_F(MembershipTest, WithoutTheDirectoryItIsFencedAtItsDeadlineAndComesBackWithANewLease) {
  Host a(faulty_, time_, kA);
  a.membership.tick();
  const LeaseId before = record(kA).lease;
  time_.advance(3);
  faulty_.down = true;
  EXPECT_LE(a.membership.tick(), kSecondNs);  // tries again soon
  EXPECT_NE(a.membership.trouble().find("is down"), std::string::npos);
  EXPECT_FALSE(a.membership.fenced());
  time_.advance(5.9);
  EXPECT_FALSE(a.membership.fenced());
  EXPECT_LE(a.membership.tick(), kSecondNs / 10 + 1);  // wakes at the deadline
  time_.advance(0.1);
  EXPECT_TRUE(a.membership.fenced());  // by the clock alone
  a.membership.tick();
  ASSERT_EQ(a.fenced_because.size(), 1u);
  EXPECT_NE(a.fenced_because[0].find("is down"), std::string::npos);
  for (int i = 0; i < 60; ++i) {
    time_.advance(1);
    a.membership.tick();
  }
  EXPECT_EQ(a.fenced_because.size(), 1u);
  faulty_.down = false;
  a.membership.tick();
  EXPECT_FALSE(a.membership.fenced());
  EXPECT_EQ(a.backs, 2);
  EXPECT_NE(record(kA).lease, before);
  EXPECT_EQ(record(kA).generation, 2u);
  EXPECT_EQ(a.membership.generation(), 2u);
  EXPECT_EQ(a.membership.trouble(), "");
}

TEST_F(MembershipTest, ADaemonThatWasStoppedIsFencedWhenItGoesOn) {
  Host a(faulty_, time_, kA);
  a.membership.tick();
  time_.advance(1000);  // SIGSTOP, or the host slept
  EXPECT_TRUE(a.membership.fenced());
  EXPECT_FALSE(registered(kA));
  a.membership.tick();
  EXPECT_EQ(a.fenced_because.size(), 1u);
  EXPECT_FALSE(a.membership.fenced());
  EXPECT_EQ(a.backs, 2);
}

TEST_F(MembershipTest, ARenewalThatIsAnsweredTooLateDoesNotCount) {
  Host a(faulty_, time_, kA);
  a.membership.tick();
  time_.advance(3);
  // It reaches the directory in time; we learn of it when our deadline has passed.
  bool first = true;
  faulty_.after_each = [&] {
    if (first) time_.advance(7);
    first = false;
  };
  a.membership.tick();
  EXPECT_EQ(a.fenced_because.size(), 1u);
  EXPECT_EQ(a.backs, 2);  // registered anew in the same go
  EXPECT_FALSE(a.membership.fenced());
  EXPECT_EQ(record(kA).generation, 2u);
}

TEST_F(MembershipTest, ALeaseThatWasRevokedFencesAtTheNextRenewal) {
  Host a(faulty_, time_, kA);
  a.membership.tick();
  must(cluster_.directory->revoke(record(kA).lease));
  time_.advance(3);
  a.membership.tick();
  EXPECT_EQ(a.fenced_because.size(), 1u);
  EXPECT_FALSE(a.membership.fenced());
  EXPECT_EQ(record(kA).generation, 2u);
}

TEST_F(MembershipTest, ItStaysFencedUntilItsVmsWereCompared) {
  Host a(faulty_, time_, kA);
  a.back = []() -> Result<void> { return fail(Code::host_failed, "cannot end VM 'x'"); };
  a.membership.tick();
  EXPECT_TRUE(a.membership.fenced());
  EXPECT_TRUE(registered(kA));
  EXPECT_NE(a.membership.trouble().find("cannot end VM 'x'"), std::string::npos);
  time_.advance(1);
  a.membership.tick();
  EXPECT_EQ(a.backs, 2);
  EXPECT_TRUE(a.membership.fenced());
  a.back = []() -> Result<void> { return {}; };
  a.membership.tick();
  EXPECT_FALSE(a.membership.fenced());
  EXPECT_EQ(a.backs, 3);
  EXPECT_EQ(record(kA).generation, 1u);
  EXPECT_TRUE(a.fenced_because.empty());  // it never was in
}

TEST_F(MembershipTest, AComparisonThatOutlastsTheLeaseIsMadeAgain) {
  Host a(faulty_, time_, kA);
  a.back = [&]() -> Result<void> {
    if (a.backs == 1) time_.advance(20);
    return {};
  };
  a.membership.tick();
  EXPECT_TRUE(a.membership.fenced());
  a.membership.tick();
  EXPECT_FALSE(a.membership.fenced());
  EXPECT_EQ(a.backs, 2);
}

TEST_F(MembershipTest, ASecondDaemonWithTheSameIdIsRefused) {
  Host first(faulty_, time_, kA, "one");
  first.membership.tick();
  // Another state folder; then a copy of ours on another machine.
  for (const auto& [session, machine] :
       {std::pair{"two", "machine"}, std::pair{"one", "elsewhere"}}) {
    Host second(faulty_, time_, kA, session, machine);
    const auto refused = second.membership.start();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Code::exists);
    EXPECT_NE(refused.error().message.find("in use by another daemon ('host-a' at 127.0.0.1:7001)"),
              std::string::npos)
        << refused.error().message;
    EXPECT_TRUE(second.membership.fenced());
  }
  first.membership.tick();
  EXPECT_FALSE(first.membership.fenced());
  EXPECT_EQ(record(kA).generation, 1u);
}

TEST_F(MembershipTest, ADaemonThatWasStartedAgainTakesItsRegistrationOver) {
  auto first = std::make_unique<Host>(faulty_, time_, kA);
  first->membership.tick();
  first.reset();  // killed: the lease is still there
  EXPECT_TRUE(registered(kA));
  Host second(faulty_, time_, kA);
  second.membership.tick();
  EXPECT_FALSE(second.membership.fenced());
  EXPECT_EQ(record(kA).generation, 2u);
  EXPECT_EQ(second.backs, 1);
}

TEST_F(MembershipTest, WhoWasTakenOverStaysFenced) {
  Host first(faulty_, time_, kA);
  first.membership.tick();
  Host second(faulty_, time_, kA);
  second.membership.tick();
  for (int i = 0; i < 10; ++i) {
    time_.advance(3);
    first.membership.tick();
    second.membership.tick();
  }
  EXPECT_TRUE(first.membership.fenced());
  EXPECT_EQ(first.fenced_because.size(), 1u);
  EXPECT_NE(first.membership.trouble().find("took its registration over"), std::string::npos);
  EXPECT_FALSE(second.membership.fenced());
  EXPECT_EQ(record(kA).generation, 2u);
}

TEST_F(MembershipTest, WithoutTheDirectoryItStartsFencedAndRegistersLater) {
  faulty_.down = true;
  Host a(faulty_, time_, kA);
  ASSERT_TRUE(a.membership.start());
  EXPECT_TRUE(a.membership.fenced());
  EXPECT_NE(a.membership.trouble(), "");
  faulty_.down = false;
  a.membership.wake();
  for (int i = 0; i < 2000 && a.membership.fenced(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_FALSE(a.membership.fenced());
  a.membership.stop();
  EXPECT_TRUE(registered(kA));
  a.membership.leave();
  EXPECT_FALSE(registered(kA));
  EXPECT_TRUE(a.membership.fenced());
}

TEST_F(MembershipTest, WhoIsNoMemberIsDenied) {
  Host stranger(faulty_, time_, "h0123456789ab");
  const auto refused = stranger.membership.start();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::denied);
  Host wrong(faulty_, time_, "bad id");
  EXPECT_EQ(wrong.membership.start().error().code, Code::invalid);
}

TEST_F(MembershipTest, AMemberThatIsRemovedIsFenced) {
  Host a(faulty_, time_, kA);
  a.membership.tick();
  must(remove_member(*cluster_.directory, kA));
  time_.advance(3);
  a.membership.tick();
  EXPECT_TRUE(a.membership.fenced());
  EXPECT_NE(a.membership.trouble().find("not a member"), std::string::npos);
  EXPECT_EQ(remove_member(*cluster_.directory, kA).error().code, Code::not_found);
}

TEST_F(MembershipTest, WhatIsUsedGoesAlongWithRenewals) {
  Host a(faulty_, time_, kA);
  a.membership.tick();
  const auto revision = cluster_.directory->get(host_key(kA)).value()->revision;
  a.membership.tick();
  EXPECT_EQ(cluster_.directory->get(host_key(kA)).value()->revision, revision);  // nothing to say
  a.membership.update_used({1ull << 30, 2, 3});
  EXPECT_EQ(record(kA).used, Resources{});
  a.membership.tick();
  EXPECT_EQ(record(kA).used, (Resources{1ull << 30, 2, 3}));
  must(cluster_.directory->revoke(record(kA).lease));
  EXPECT_FALSE(registered(kA));  // it still hung on the lease
}

TEST_F(MembershipTest, DrainIsSetByAnyHostAndOutlivesTheDaemon) {
  must(set_drain(*cluster_.directory, kA, true));
  Host a(faulty_, time_, kA);
  a.membership.tick();
  EXPECT_TRUE(a.membership.draining());
  EXPECT_TRUE(view(a.membership, kA).member.drain);
  must(set_drain(*cluster_.directory, kA, false));
  must(a.membership.refresh());
  EXPECT_FALSE(a.membership.draining());
  EXPECT_EQ(set_drain(*cluster_.directory, "h0123456789ab", true).error().code, Code::not_found);
}

TEST_F(MembershipTest, GoneHostsAreCountedWhileWeCanSee) {
  Host a(faulty_, time_, kA);
  Host b(faulty_, time_, kB);
  a.membership.tick();
  b.membership.tick();
  must(a.membership.refresh());
  EXPECT_TRUE(view(a.membership, kB).live);
  time_.advance(3);
  a.membership.tick();
  time_.advance(7);  // b's lease is over
  a.membership.tick();
  EXPECT_FALSE(view(a.membership, kB).live);
  EXPECT_EQ(view(a.membership, kB).gone_ns, 0);
  for (int i = 0; i < 3; ++i) {
    time_.advance(3);
    a.membership.tick();
  }
  EXPECT_EQ(view(a.membership, kB).gone_ns, 9 * kSecondNs);
  faulty_.down = true;  // what we cannot see does not count
  time_.advance(60);
  a.membership.tick();
  EXPECT_EQ(view(a.membership, kB).gone_ns, 9 * kSecondNs);
  EXPECT_EQ(a.membership.seen_ago_ns(), 60 * kSecondNs);
  faulty_.down = false;
  b.membership.tick();
  a.membership.tick();
  EXPECT_TRUE(view(a.membership, kB).live);
  EXPECT_EQ(view(a.membership, kB).gone_ns, 0);
}

TEST_F(MembershipTest, ADamagedRecordOfAnotherHostIsAProblemNotAFailure) {
  Host a(faulty_, time_, kA);
  cluster_.put(host_key(kB), {{"version", 99}});
  cluster_.put("host/nonsense", 1);
  a.membership.tick();
  EXPECT_FALSE(a.membership.fenced());
  const HostView b = view(a.membership, kB);
  EXPECT_FALSE(b.live);
  EXPECT_NE(b.problem.find("directory key 'host/h0000000000bb': version 99"), std::string::npos);
  EXPECT_EQ(a.membership.problems().size(), 2u);
  time_.advance(3);
  a.membership.tick();
  EXPECT_EQ(view(a.membership, kB).gone_ns, 0);  // not gone: nobody knows
}

TEST_F(MembershipTest, OurOwnRecordDamagedIsNamed) {
  cluster_.put(host_key(kA), {{"version", 1}});
  Host a(faulty_, time_, kA);
  const auto refused = a.membership.start();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::corrupt);
  EXPECT_NE(refused.error().message.find("'host/h0000000000aa'"), std::string::npos);
}

TEST_F(MembershipTest, ARegistrationWhoseAnswerGotLostIsMadeAgain) {
  Host a(faulty_, time_, kA);
  faulty_.lost_answers = 1;
  a.membership.tick();
  EXPECT_TRUE(a.membership.fenced());
  a.membership.tick();
  EXPECT_FALSE(a.membership.fenced());
  EXPECT_EQ(a.backs, 1);
}

TEST_F(MembershipTest, NamesAndIdsOfMembersAreUnique) {
  Member member;
  member.id = "h0123456789ab";
  member.name = "host-a";
  EXPECT_EQ(add_member(*cluster_.directory, member).error().code, Code::exists);
  member.name = "host-d";
  EXPECT_TRUE(add_member(*cluster_.directory, member));
  EXPECT_EQ(add_member(*cluster_.directory, member).error().code, Code::exists);
  EXPECT_EQ(list_members(*cluster_.directory).value().size(), 4u);
  must(remove_member(*cluster_.directory, member.id));
  EXPECT_TRUE(add_member(*cluster_.directory, member));  // the name is free again
}

}  // namespace
}  // namespace snow
