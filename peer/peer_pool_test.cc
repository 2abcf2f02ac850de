#include <thread>

#include "peer/pool.h"
#include "peer/test_cluster.h"

namespace snow::peer {
namespace {

void round_trip(Connection& connection) {
  need(connection.send(kTestType, some_bytes(64), kTestMs));
  EXPECT_EQ(need(connection.receive(kTestMs)).payload, some_bytes(64));
}

TEST(Pool, AConnectionIsUsedAgain) {
  TestPair pair(false);
  pair.start();
  int fd = -1;
  {
    const auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
    EXPECT_FALSE(lease.reused());
    fd = lease->fd();
    round_trip(*lease);
  }
  EXPECT_EQ(pair.pool.idle(), 1u);
  const auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
  EXPECT_TRUE(lease.reused());
  EXPECT_EQ(lease->fd(), fd);
  round_trip(*lease);
  EXPECT_EQ(pair.pool.idle(), 0u);
}

TEST(Pool, ServicesHaveTheirOwn) {
  TestPair pair(true);
  pair.server.add("other", echo);
  pair.start();
  { const auto lease = need(pair.pool.take(kHostA, "echo", kTestMs)); }
  const auto lease = need(pair.pool.take(kHostA, "other", kTestMs));
  EXPECT_FALSE(lease.reused());
  EXPECT_EQ(lease->service(), "other");
  EXPECT_EQ(pair.pool.idle(), 1u);
}

TEST(Pool, WhatIsOwedAnAnswerIsNotGivenBack) {
  TestPair pair(true);
  pair.start();
  {
    const auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
    need(lease->send(kTestType, some_bytes(3), kTestMs));
  }
  EXPECT_EQ(pair.pool.idle(), 0u);
}

TEST(Pool, ADroppedLeaseIsClosed) {
  TestPair pair(true);
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
  lease.drop();
  EXPECT_EQ(pair.pool.idle(), 0u);
}

TEST(Pool, AnUnaskedFrameMakesAnIdleConnectionUseless) {
  TestPair pair(false);
  pair.server.add("chatty", [](Connection& connection) {
    std::vector<std::byte> payload;
    while (connection.receive_into(payload, kForever)) {
      (void)connection.send(kTestType, payload, kTestMs);
      (void)connection.send(kTestType, payload, kTestMs);
    }
  });
  pair.start();
  {
    const auto lease = need(pair.pool.take(kHostA, "chatty", kTestMs));
    round_trip(*lease);
    EXPECT_TRUE(need(lease->wait(kTestMs)));
  }
  const auto lease = need(pair.pool.take(kHostA, "chatty", kTestMs));
  EXPECT_FALSE(lease.reused());
}

TEST(Pool, ForgetClosesIdleAndInterruptsUsed) {
  TestPair pair(false);
  pair.start();
  const auto used = need(pair.pool.take(kHostA, "echo", kTestMs));
  { const auto idle = need(pair.pool.take(kHostA, "echo", kTestMs)); }
  EXPECT_EQ(pair.pool.idle(), 1u);
  std::thread waiting([&] { EXPECT_EQ(used->receive(kForever).error().code, Code::unavailable); });
  pair.pool.forget(kHostA);
  waiting.join();
  EXPECT_EQ(pair.pool.idle(), 0u);
  round_trip(*need(pair.pool.take(kHostA, "echo", kTestMs)));
}

TEST(Pool, IdleOnesAreLimited) {
  TestPair pair(true, {}, {.idle_per_service = 2});
  pair.start();
  {
    std::vector<Lease> leases;
    for (int i = 0; i < 5; ++i) leases.push_back(need(pair.pool.take(kHostA, "echo", kTestMs)));
  }
  EXPECT_EQ(pair.pool.idle(), 2u);
}

TEST(Pool, OldIdleOnesAreClosed) {
  TestPair pair(true, {}, {.idle_ms = 1});
  pair.start();
  {
    const auto one = need(pair.pool.take(kHostA, "echo", kTestMs));
    const auto two = need(pair.pool.take(kHostA, "echo", kTestMs));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
  EXPECT_FALSE(lease.reused());
}

TEST(Pool, AServerThatStartedAgainIsFoundAgain) {
  for (const bool plain : {true, false}) {
    TestPair pair(plain);
    auto server = std::make_unique<Server>(pair.a);
    server->add("echo", echo);
    need(server->start({"127.0.0.1", 0}));
    const Address address = server->address();
    Pool pool(pair.b, [&](const std::string&) { return Result<Address>(address); });
    {
      std::vector<Lease> leases;
      for (int i = 0; i < 3; ++i) {
        leases.push_back(need(pool.take(kHostA, "echo", kTestMs)));
        round_trip(*leases.back());
      }
    }
    server.reset();
    EXPECT_EQ(pool.take(kHostA, "echo", kTestMs).error().code, Code::unavailable);
    server = std::make_unique<Server>(pair.a);
    server->add("echo", echo);
    need(server->start(address));
    const auto lease = need(pool.take(kHostA, "echo", kTestMs));
    round_trip(*lease);
    EXPECT_EQ(pool.idle(), 0u);
  }
}

TEST(Pool, AHostThatNobodyFindsIsTheResolversError) {
  Pool pool(plain_credentials(kHostB), [](const std::string& host) -> Result<Address> {
    return fail(Code::not_found, "host '{}': no such host", host);
  });
  EXPECT_EQ(pool.take(kHostA, "echo", kTestMs).error().code, Code::not_found);
}

TEST(Pool, ManyThreads) {
  TestPair pair(false);
  pair.start();
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) round_trip(*need(pair.pool.take(kHostA, "echo", kTestMs)));
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(pair.pool.idle(), 8u);
}

}  // namespace
}  // namespace snow::peer
