// Frames over real connections, plain and with TLS, and how they end.
#include <sys/socket.h>

#include <atomic>
#include <thread>

#include "peer/connection.h"
#include "peer/test_cluster.h"

namespace snow::peer {
namespace {

class ConnectionTest : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Modes, ConnectionTest, testing::Values(true, false),
                         [](const auto& mode) { return mode.param ? "plain" : "tls"; });

TEST_P(ConnectionTest, FramesOfAllSizesComeBack) {
  TestPair pair(GetParam());
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
  EXPECT_EQ(lease->host(), kHostA);
  EXPECT_EQ(lease->service(), "echo");
  std::vector<std::byte> reply;
  for (const size_t size :
       {0, 1, 64, 4096, 16'378, 16'379, 16'380, 16'384, 65'536, 1'000'000, 3'000'000, 100, 0}) {
    const auto sent = some_bytes(size);
    const size_t half = size / 3;
    need(lease->send(kTestType, std::span(sent).first(half), std::span(sent).subspan(half),
                     kTestMs));
    EXPECT_EQ(need(lease->receive_into(reply, kTestMs)), kTestType);
    EXPECT_TRUE(reply == sent) << size;
  }
}

TEST_P(ConnectionTest, TheLargestFrame) {
  TestPair pair(GetParam());
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
  const std::vector<std::byte> largest(kMaxFrameBytes, std::byte{7});
  need(lease->send(kTestType, largest, kTestMs));
  EXPECT_TRUE(need(lease->receive(kTestMs)).payload == largest);
  const std::vector<std::byte> more(kMaxFrameBytes + 1);
  EXPECT_EQ(lease->send(kTestType, more, kTestMs).error().code, Code::invalid);
  EXPECT_FALSE(lease->broken());  // nothing of it went out
}

TEST_P(ConnectionTest, SeveralFramesInOneReadAreKeptApart) {
  TestPair pair(GetParam());
  pair.server.add("burst", [](Connection& connection) {
    for (size_t i = 0; i < 2000; ++i) {
      if (!connection.send(kTestType, some_bytes(i % 97), kTestMs)) return;
    }
  });
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "burst", kTestMs));
  std::vector<std::byte> payload;
  for (size_t i = 0; i < 2000; ++i) {
    need(lease->receive_into(payload, kTestMs));
    ASSERT_TRUE(payload == some_bytes(i % 97)) << i;
  }
  EXPECT_EQ(lease->receive_into(payload, kTestMs).error().code, Code::unavailable);
}

TEST_P(ConnectionTest, WhoNeverAnswersCostsTheTimeout) {
  TestPair pair(GetParam());
  pair.server.add("mute", [](Connection& connection) {
    std::vector<std::byte> payload;
    while (connection.receive_into(payload, kForever)) {
    }
  });
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "mute", kTestMs));
  need(lease->send(kTestType, some_bytes(10), kTestMs));
  const int64_t begin_ns = monotonic_ns();
  const auto reply = lease->receive(50);
  EXPECT_EQ(reply.error().code, Code::timed_out);
  EXPECT_NE(reply.error().message.find(kHostA), std::string::npos) << reply.error().message;
  EXPECT_GE(monotonic_ns() - begin_ns, 49'000'000);
  // A late answer must not be taken for another's.
  EXPECT_TRUE(lease->broken());
  EXPECT_EQ(lease->receive(50).error().code, Code::unavailable);
  lease = Lease();
  EXPECT_EQ(pair.pool.idle(), 0u);
}

TEST_P(ConnectionTest, WhoTakesNothingCostsTheTimeout) {
  TestPair pair(GetParam());
  std::atomic<bool> done{false};
  pair.server.add("deaf", [&](Connection&) { done.wait(false); });
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "deaf", kTestMs));
  const auto block = some_bytes(size_t{1} << 20);
  Result<void> sent;
  for (int i = 0; i < 1000 && sent; ++i) sent = lease->send(kTestType, block, 50);
  EXPECT_EQ(sent.error().code, Code::timed_out);
  // A write that failed leaves no lock behind.
  EXPECT_EQ(lease->send(kTestType, block, 50).error().code, Code::unavailable);
  done = true;
  done.notify_all();
}

TEST_P(ConnectionTest, AnErrorFrameIsThatErrorAndBreaksNothing) {
  TestPair pair(GetParam());
  pair.server.add("no", [](Connection& connection) {
    std::vector<std::byte> payload;
    while (connection.receive_into(payload, kForever)) {
      (void)connection.send_error({Code::spent, "ticket 't': used already"}, kTestMs);
    }
  });
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "no", kTestMs));
  for (int i = 0; i < 3; ++i) {
    need(lease->send(kTestType, {}, kTestMs));
    const auto reply = lease->receive(kTestMs);
    EXPECT_EQ(reply.error().code, Code::spent);
    EXPECT_EQ(reply.error().message, "ticket 't': used already");
  }
  EXPECT_FALSE(lease->broken());
}

TEST_P(ConnectionTest, InterruptWakesAWaitingReader) {
  TestPair pair(GetParam());
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
  std::thread other([&] { lease->interrupt(); });
  EXPECT_EQ(lease->receive(kForever).error().code, Code::unavailable);
  other.join();
}

TEST_P(ConnectionTest, WaitBreaksNothing) {
  TestPair pair(GetParam());
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
  EXPECT_FALSE(need(lease->wait(10)));
  need(lease->send(kTestType, some_bytes(5), kTestMs));
  EXPECT_TRUE(need(lease->wait(kTestMs)));
  EXPECT_EQ(need(lease->receive(kTestMs)).payload, some_bytes(5));
}

TEST_P(ConnectionTest, OneReaderAndOneWriterAtATime) {
  TestPair pair(GetParam());
  pair.server.add("both", [](Connection& connection) {
    connection.allow_duplex();
    std::thread writer([&] {
      for (size_t i = 0; i < 300; ++i) {
        if (!connection.send(kTestType, some_bytes(i * 100), kTestMs)) return;
      }
    });
    std::vector<std::byte> payload;
    for (size_t i = 0; i < 300 && connection.receive_into(payload, kTestMs); ++i) {
    }
    writer.join();
    (void)connection.receive_into(payload, kTestMs);
  });
  pair.start();
  auto lease = need(pair.pool.take(kHostA, "both", kTestMs));
  lease->allow_duplex();
  std::thread writer([&] {
    for (size_t i = 0; i < 300; ++i) need(lease->send(kTestType, some_bytes(i * 99), kTestMs));
  });
  std::vector<std::byte> payload;
  for (size_t i = 0; i < 300; ++i) {
    need(lease->receive_into(payload, kTestMs));
    ASSERT_TRUE(payload == some_bytes(i * 100)) << i;
  }
  writer.join();
}

TEST(PlainConnection, OnlyOnLoopback) {
  const auto us = plain_credentials(kHostA);
  // 192.0.2.0/24 is for documents: nobody is asked.
  const auto made = Connection::connect(*us, {"192.0.2.1", 7171}, kHostB, "echo", kTestMs);
  EXPECT_EQ(made.error().code, Code::denied) << made.error().message;
  Server server(us);
  EXPECT_EQ(server.start({"0.0.0.0", 0}).error().code, Code::denied);
  Identity anywhere;
  anywhere.host = kHostA;
  anywhere.plain = anywhere.plain_anywhere = true;
  Server open(need(Credentials::load(anywhere)));
  EXPECT_TRUE(open.start({"0.0.0.0", 0}));
}

}  // namespace
}  // namespace snow::peer
