// What a hostile guest may try: every case ends with a bounded amount of memory, an error for that
// guest's own streams and calls at most, and a link that goes on.
#include <gtest/gtest.h>

#include <thread>

#include "guestlink/link.h"
#include "guestlink/link_peer.h"

namespace snow {
namespace {

using channel::Fields;
using channel::Type;

using HostileTest = LinkTest;

TEST_F(HostileTest, DataWithoutCreditEndsTheStream) {
  uint32_t number = 0;
  auto stream = exec(number);
  for (size_t i = 0; i <= channel::kWindowBytes / 32768; ++i) {
    peer_.data(number, 1, std::string(32768, 'x'));
  }
  EXPECT_EQ(peer_.expect(Type::closed).stream, number);
  while (!stream->read(kLongMs)->end) {
  }
  EXPECT_EQ(stream->outcome().error().code, Code::guest_failed);
  peer_.data(number, 1, "more");  // ignored
  sync();
}

TEST_F(HostileTest, SmallPiecesOfTwoKindsStayCheapAndInOrder) {
  uint32_t number = 0;
  auto stream = exec(number);
  std::string all;
  for (int i = 0; i < 20'000; ++i) {
    all += channel::encode_frame({Type::data, number, std::string(1, char(1 + i % 2)) + "x"});
  }
  peer_.raw(all);
  for (int i = 0; i < 20'000; ++i) {
    const auto chunk = stream->read(kLongMs);
    ASSERT_EQ(chunk->fd, 1 + i % 2);
    ASSERT_EQ(chunk->bytes, "x");
  }
}

TEST_F(HostileTest, BadDataAndBadEndingsAreErrors) {
  for (const std::string& payload : {std::string(), std::string("\0x", 2), std::string("\3x")}) {
    uint32_t number = 0;
    auto stream = exec(number);
    peer_.send(Type::data, number, payload);
    EXPECT_TRUE(stream->read(kLongMs)->end);
    EXPECT_EQ(stream->outcome().error().code, Code::guest_failed);
    EXPECT_EQ(peer_.expect(Type::closed).stream, number);
  }
  for (const std::string& payload :
       {std::string("junk"), std::string(), channel::encode_fields({{"code", "ok"}}),
        channel::encode_fields({{"code", "ok"}, {"exit", "1000"}}),
        channel::encode_fields({{"code", "no such code"}})}) {
    uint32_t number = 0;
    auto stream = exec(number);
    peer_.send(Type::closed, number, payload);
    EXPECT_TRUE(stream->read(kLongMs)->end);
    EXPECT_EQ(stream->outcome().error().code, Code::guest_failed);
  }
}

TEST_F(HostileTest, ManyCallsAreRefused) {
  for (uint32_t i = 0; i < 100; ++i) {
    peer_.send(Type::call, 2 * i + 1, Fields{{"call", "info"}});
  }
  for (int i = 0; i < 36; ++i) {
    EXPECT_EQ(Peer::fields(peer_.expect(Type::answer))["code"], "no_room");
  }
  for (int i = 0; i < 64; ++i) {
    auto call = seen_.next_call();
    ASSERT_TRUE(call);
    // It goes away and calls again under the same number: the host's call keeps its place.
    peer_.send(Type::closed, static_cast<uint32_t>(2 * i + 1), Fields{{"code", "ok"}});
    peer_.send(Type::call, static_cast<uint32_t>(2 * i + 1), Fields{{"call", "info"}});
    sync();
    EXPECT_TRUE(call->gone());
  }
  const std::lock_guard lock(seen_.mutex);
  EXPECT_TRUE(seen_.calls.empty());
}

TEST_F(HostileTest, CallsThatAreNotCalls) {
  const uint64_t before = link_->dropped_frames();
  peer_.send(Type::call, 2, Fields{{"call", "info"}});
  peer_.send(Type::call, 3, std::string("junk"));
  for (const Type type : {Type::open, Type::resume, Type::answer, Type::signal}) {
    peer_.send(type, 3, Fields{});
  }
  peer_.send(Type::prepared, 0, Fields{});
  peer_.send(Type::ready, 0, Fields{});
  peer_.send(Type::hello, 0, std::string("junk"));
  peer_.data(99, 1, "x");
  peer_.credit(98, 5);
  peer_.raw(std::string("\xff garbage \0", 11));
  sync();
  EXPECT_EQ(link_->dropped_frames(), before + 11);
  EXPECT_TRUE(link_->has_agent());
  EXPECT_TRUE(seen_.calls.empty());
}

TEST_F(HostileTest, AnExitsPayloadIsBounded) {
  peer_.send(Type::call, 3, Fields{{"call", "exit"}});
  uint64_t credit = channel::kWindowBytes;
  for (uint64_t sent = 0;; sent += 32768) {
    if (sent > channel::kMaxResultBytes) break;
    while (credit < 32768) {
      credit += from_little_endian(peer_.expect(Type::credit).payload);
    }
    peer_.data(3, 1, std::string(32768, 'x'));
    credit -= 32768;
  }
  auto message = peer_.next();
  while (message.type == Type::credit) message = peer_.next();
  EXPECT_EQ(Peer::fields(message)["message"], "a result of more than 16 MiB");
  // Data for a call that takes none.
  peer_.send(Type::call, 5, Fields{{"call", "info"}});
  peer_.data(5, 1, "x");
  EXPECT_EQ(Peer::fields(peer_.expect(Type::answer))["code"], "invalid");
  EXPECT_TRUE(seen_.next_call()->gone());
}

TEST_F(HostileTest, PayloadsOfAllCallsTogetherAreBounded) {
  // As many calls as there may be, each filled as far as its credit goes.
  std::map<uint32_t, uint64_t> credit;
  for (uint32_t i = 0; i < 64; ++i) {
    peer_.send(Type::call, 2 * i + 1, Fields{{"call", "exit"}});
    credit[2 * i + 1] = channel::kWindowBytes;
  }
  uint64_t sent = 0;
  bool refused = false;
  for (int round = 0; round < 80 && !refused; ++round) {
    for (auto& [number, left] : credit) {
      if (left < 8192) continue;
      peer_.data(number, 1, std::string(8192, 'x'));
      left -= 8192;
      sent += 8192;
    }
    for (auto message = peer_.next(20); message.type != Type{}; message = peer_.next(20)) {
      if (message.type == Type::credit) {
        credit[message.stream] += from_little_endian(message.payload);
      } else {
        EXPECT_EQ(Peer::fields(message)["code"], "no_room");
        refused = true;
      }
    }
  }
  EXPECT_TRUE(refused);
  EXPECT_GT(sent, channel::kMaxResultBytes);
}

TEST_F(HostileTest, AGuestThatDoesNotReadBlocksNobody) {
  uint32_t number = 0;
  auto stream = exec(number);
  peer_.credit(number, 0xffffffff);
  std::thread writer([&] { EXPECT_FALSE(stream->write(std::string(16 << 20, 'w'))); });
  // Calls whose refusals nobody reads.
  for (uint32_t i = 0; i < 60'000; ++i) {
    peer_.send(Type::call, 2 * (i % 60'000) + 1, Fields{{"call", "info"}});
  }
  sync();
  std::vector<std::unique_ptr<GuestStream>> streams;
  for (int i = 0; i < 10; ++i) (void)link_->exec({.argv = {std::string(30'000, 'x')}});
  link_->prepare(1).error();
  stream->cancel();
  writer.join();
  sync();
}

TEST_F(HostileTest, AFloodOfHellosAndFrames) {
  std::string flood;
  for (int i = 0; i < 10'000; ++i) {
    flood += channel::encode_frame({Type::hello, 0, channel::encode_fields({{"version", "1"}})});
    flood += "junk";
    flood += '\0';
  }
  flood += std::string(1 << 20, 'y');  // a frame without end
  peer_.raw(flood);
  peer_.raw(std::string(1, '\0'));
  sync();
  EXPECT_TRUE(link_->has_agent());
  peer_.send(Type::call, 1, Fields{{"call", "info"}});
  EXPECT_TRUE(seen_.next_call());
}

TEST_F(HostileTest, TheLinkMayBeDestroyedInACallback) {
  Peer peer;
  std::unique_ptr<GuestLink> link;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  {
    const std::lock_guard lock(mutex);
    link = GuestLink::connect(peer.path(), {.on_hello =
                                                [&] {
                                                  const std::lock_guard inner(mutex);
                                                  link.reset();
                                                  done = true;
                                                  changed.notify_all();
                                                }})
               .value();
  }
  peer.accept();
  peer.hello();
  peer.hello();
  std::unique_lock lock(mutex);
  EXPECT_TRUE(changed.wait_for(lock, std::chrono::milliseconds(kLongMs), [&] { return done; }));
  lock.unlock();
  GuestLink::settle();
}

}  // namespace
}  // namespace snow
