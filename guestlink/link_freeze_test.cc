// Prepare, resume, and the move of a link to the QEMU that goes on.
#include <gtest/gtest.h>

#include <thread>

#include "guestlink/link.h"
#include "guestlink/link_peer.h"

namespace snow {
namespace {

using channel::Fields;
using channel::Type;

class FreezeTest : public LinkTest {
 protected:
  // Runs prepare() against a peer that answers.
  void prepare() {
    std::thread agent([&] {
      peer_.expect(Type::prepare);
      peer_.send(Type::prepared, 0, Fields{{"held", "1"}});
    });
    const auto prepared = link_->prepare(kLongMs);
    agent.join();
    ASSERT_TRUE(prepared) << prepared.error().message;
    EXPECT_EQ(channel::field(*prepared, "held"), "1");
  }
  static Fields answer_resume(Peer& peer) {
    const auto resume = peer.expect(Type::resume);
    peer.send(Type::ready, 0, Fields{{"reseeded", "ok"}});
    return Peer::fields(resume);
  }
};

TEST_F(FreezeTest, NothingIsSentBetweenPrepareAndResume) {
  uint32_t number = 0;
  auto stream = exec(number);
  peer_.send(Type::call, 3, Fields{{"call", "info"}});
  const auto call = seen_.next_call();
  prepare();
  EXPECT_EQ(link_->prepare(1).error().code, Code::wrong_state);
  std::thread writer([&] { EXPECT_TRUE(stream->write("later")); });
  call->answer({{"name", "web"}});
  stream->send_signal(15);
  EXPECT_EQ(static_cast<int>(peer_.next(100, true).type), 0);
  Identity identity;
  identity.changed = false;
  Fields fields;
  std::thread agent([&] { fields = answer_resume(peer_); });
  ASSERT_TRUE(link_->resume(identity, kLongMs));
  agent.join();
  EXPECT_EQ(fields.size(), 2u);
  EXPECT_EQ(channel::field(fields, "changed"), "0");
  EXPECT_GT(channel::number_field(fields, "wall_ns").value_or(0), 0);
  EXPECT_EQ(peer_.expect(Type::answer).stream, 3u);
  EXPECT_EQ(peer_.expect(Type::signal).stream, number);
  EXPECT_EQ(peer_.expect(Type::data).payload, std::string("\0later", 6));
  writer.join();
}

TEST_F(FreezeTest, ResumeTellsTheGuestWhoItIs) {
  prepare();
  const Identity identity{.id = "abc",
                          .name = "web-1",
                          .ticket = "t1",
                          .index = 3,
                          .count = 8,
                          .parent = "def",
                          .generation = 2,
                          .image = "web",
                          .uuid = "u",
                          .hostname = "web-1",
                          .new_machine_id = true,
                          .mac = "52:54:00:00:00:01",
                          .parameters = {{"part", "3"}},
                          .environment = {{"LANG", "C"}}};
  Fields fields;
  std::thread agent([&] { fields = answer_resume(peer_); });
  const auto ready = link_->resume(identity, kLongMs);
  agent.join();
  ASSERT_TRUE(ready) << ready.error().message;
  EXPECT_EQ(channel::field(ready->fields, "reseeded"), "ok");
  EXPECT_EQ(fields["index"], "3");
  EXPECT_EQ(fields["count"], "8");
  EXPECT_EQ(fields["machine_id"], "new");
  EXPECT_EQ(fields["entropy"].size(), 64u);
  EXPECT_EQ(fields["param.part"], "3");
  EXPECT_EQ(fields["env.LANG"], "C");
  EXPECT_GT(channel::number_field(fields, "wall_ns").value_or(0), 0);
}

TEST_F(FreezeTest, AnAgentThatIsSilentOrLate) {
  EXPECT_EQ(link_->prepare(10).error().code, Code::no_agent);
  Identity same;
  same.changed = false;
  EXPECT_EQ(link_->resume(same, 10).error().code, Code::no_agent);
  // It answers all of it late, while the next freeze waits: those answers are not the new one's.
  std::thread agent([&] {
    peer_.expect(Type::prepare);
    peer_.expect(Type::resume);
    peer_.expect(Type::prepare);
    peer_.send(Type::prepared, 0, Fields{{"held", "late"}});
    peer_.send(Type::ready, 0, Fields{{"late", "1"}});
    peer_.send(Type::prepared, 0, Fields{{"held", "1"}});
    peer_.expect(Type::resume);
    peer_.send(Type::ready, 0, Fields{});
  });
  const auto prepared = link_->prepare(kLongMs);
  ASSERT_TRUE(prepared);
  EXPECT_EQ(channel::field(*prepared, "held"), "1");
  const auto ready = link_->resume(same, kLongMs);
  agent.join();
  ASSERT_TRUE(ready);
  EXPECT_TRUE(ready->fields.empty());
}

TEST_F(FreezeTest, AResumeThatWasBegunIsOnlyWaitedFor) {
  prepare();
  Identity identity;
  identity.changed = false;
  ASSERT_TRUE(link_->begin_resume(identity));
  answer_resume(peer_);
  ASSERT_TRUE(link_->resume(identity, kLongMs));
  EXPECT_EQ(static_cast<int>(peer_.next(100, true).type), 0) << "nothing was sent twice";
  std::thread agent([&] { answer_resume(peer_); });
  EXPECT_TRUE(link_->resume(identity, kLongMs)) << "the next one is one of its own";
  agent.join();
}

TEST_F(FreezeTest, AQemuThatDiesDuringAFreeze) {
  std::thread agent([&] {
    peer_.expect(Type::prepare);
    peer_.close();
  });
  EXPECT_EQ(link_->prepare(kLongMs).error().code, Code::guest_failed);
  agent.join();
  Identity same;
  EXPECT_EQ(link_->resume(same, kLongMs).error().code, Code::guest_failed);
}

TEST_F(FreezeTest, AnIdentityThatIsTooLargeIsRefused) {
  Identity identity;
  identity.parameters["big"] = std::string(40'000, 'x');
  EXPECT_EQ(link_->resume(identity, 1).error().code, Code::invalid);
}

TEST_F(FreezeTest, StreamsAndCallsGoOnOverTheNewLink) {
  uint32_t number = 0;
  auto stream = exec(number);
  peer_.send(Type::call, 11, Fields{{"call", "join"}});
  const auto call = seen_.next_call();
  ASSERT_TRUE(call);
  prepare();
  std::thread writer([&] { EXPECT_TRUE(stream->write("after")); });

  Seen new_seen;
  Peer new_peer;
  auto new_link =
      GuestLink::connect(new_peer.path(), new_seen.callbacks(), GuestLink::Start::thaw).value();
  new_peer.accept();
  new_link->take_over(*link_);
  EXPECT_FALSE(link_->has_agent());
  EXPECT_TRUE(new_link->has_agent());
  call->answer({{"count", "1"}}, "result");
  EXPECT_EQ(static_cast<int>(new_peer.next(100, true).type), 0);  // still held
  peer_.close();
  link_.reset();  // as the old QEMU is killed: nothing of it matters any more

  Identity parent;
  parent.id = "abc";
  Fields fields;
  std::thread agent([&] { fields = answer_resume(new_peer); });
  ASSERT_TRUE(new_link->resume(parent, kLongMs));
  agent.join();
  EXPECT_EQ(fields["id"], "abc");
  EXPECT_EQ(new_peer.expect(Type::answer).stream, 11u);
  bool data = false;
  std::string result;
  while (!data || result.empty()) {
    const auto message = new_peer.next();
    ASSERT_NE(static_cast<int>(message.type), 0);
    if (message.type != Type::data) continue;
    if (message.stream == number) {
      EXPECT_EQ(message.payload, std::string("\0after", 6));
      data = true;
    } else {
      result += message.payload;
    }
  }
  EXPECT_EQ(result, "\1result");
  writer.join();
  new_peer.data(number, 1, "still here");
  EXPECT_EQ(stream->read(kLongMs)->bytes, "still here");
  new_peer.send(Type::call, 13, Fields{{"call", "info"}});
  EXPECT_TRUE(new_seen.next_call());
  EXPECT_FALSE(new_seen.closed);
  EXPECT_FALSE(seen_.closed);
  // The next fork moves it once more.
  Peer third_peer;
  Seen third_seen;
  auto third = GuestLink::connect(third_peer.path(), third_seen.callbacks()).value();
  third_peer.accept();
  third->take_over(*new_link);
  new_link.reset();
  third_peer.send(Type::closed, number, Fields{{"code", "ok"}, {"exit", "4"}});
  EXPECT_TRUE(stream->read(kLongMs)->end);
  EXPECT_EQ(stream->outcome().value(), 4);
  third_peer.close();
  EXPECT_TRUE(third_seen.wait_closed());
  third.reset();
  GuestLink::settle();
}

TEST(FreezeOfAGuestWithoutAgent, TheNewLinkGoesOnAsking) {
  Peer old_peer;
  Peer new_peer;
  auto old_link = GuestLink::connect(old_peer.path(), {}).value();
  auto new_link = GuestLink::connect(new_peer.path(), {}, GuestLink::Start::thaw).value();
  old_peer.accept();
  new_peer.accept();
  new_link->take_over(*old_link);
  old_link.reset();
  EXPECT_EQ(new_peer.next(kLongMs, true).type, Type::ask);
  new_peer.hello();
  EXPECT_TRUE(new_link->wait_for_agent(kLongMs));
}

TEST(FreezeOfAGuestWithoutAgent, ACloneThatSaysHelloLaterIsHeard) {
  Seen seen;
  Peer peer;
  auto link = GuestLink::connect(peer.path(), seen.callbacks(), GuestLink::Start::thaw).value();
  peer.accept();
  peer.hello();
  ASSERT_TRUE(link->wait_for_agent(kLongMs));
  auto stream = link->exec({.argv = {"x"}});
  ASSERT_TRUE(stream);
  EXPECT_EQ(peer.expect(Type::open).type, Type::open);
  link.reset();
  GuestLink::settle();
}

}  // namespace
}  // namespace snow
