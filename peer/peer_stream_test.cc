#include <thread>

#include "peer/stream.h"
#include "peer/test_cluster.h"

namespace snow::peer {
namespace {

struct StreamTest : testing::TestWithParam<bool> {
  StreamTest() : pair(GetParam()) {
    streams.add("echo", [](const std::string&, const Message& in, Stream& stream) -> Result<void> {
      SNOW_TRY(stream.accept({{{"seen", in.json}}, in.bytes}, kTestMs));
      std::vector<std::byte> payload;
      for (;;) {
        SNOW_ASSIGN(const uint8_t type, stream.receive_into(payload, kTestMs));
        if (type == kEnd) return {};
        SNOW_TRY(stream.send(type, payload, kTestMs));
      }
    });
    streams.add("refuse", [](const std::string&, const Message&, Stream&) -> Result<void> {
      return fail(Code::not_found, "VM 'x': no such VM");
    });
    streams.add("halfway", [](const std::string&, const Message&, Stream& stream) -> Result<void> {
      SNOW_TRY(stream.accept({}, kTestMs));
      SNOW_TRY(stream.send(kTestType, some_bytes(10), kTestMs));
      return fail(Code::host_failed, "disk is full");
    });
    streams.add("pour", [](const std::string&, const Message&, Stream& stream) -> Result<void> {
      SNOW_TRY(stream.accept({}, kTestMs));
      for (int i = 0; i < 200; ++i) SNOW_TRY(stream.send(kTestType, some_bytes(100'000), kTestMs));
      return {};
    });
    streams.add("wait", [](const std::string&, const Message&, Stream& stream) -> Result<void> {
      SNOW_TRY(stream.accept({}, kTestMs));
      SNOW_TRY(stream.receive(kForever));
      return {};
    });
    streams.add("shape", [](const std::string&, const Message& in, Stream&) -> Result<void> {
      return fail(Code::internal, "{}", in.json.at("missing").get<int>());
    });
    pair.server.add("stream", streams.service());
    pair.start();
  }
  Result<Stream> open(std::string_view method, const Message& argument = {}) {
    return open_stream(pair.pool, kHostA, method, argument, kTestMs);
  }
  Streams streams;
  TestPair pair;
};
INSTANTIATE_TEST_SUITE_P(Modes, StreamTest, testing::Values(true, false),
                         [](const auto& mode) { return mode.param ? "plain" : "tls"; });

TEST_P(StreamTest, BothWaysAtOnce) {
  auto stream = need(open("echo", {{{"k", 1}}, some_bytes(9)}));
  EXPECT_EQ(stream.accepted().json.at("seen").at("k"), 1);
  EXPECT_EQ(stream.accepted().bytes, some_bytes(9));
  std::thread writer([&] {
    for (size_t i = 0; i < 500; ++i) need(stream.send(kTestType, some_bytes(i * 50), kTestMs));
    need(stream.finish(kTestMs));
  });
  std::vector<std::byte> payload;
  for (size_t i = 0; i < 500; ++i) {
    ASSERT_EQ(need(stream.receive_into(payload, kTestMs)), kTestType);
    ASSERT_TRUE(payload == some_bytes(i * 50)) << i;
  }
  EXPECT_EQ(need(stream.receive_into(payload, kTestMs)), kEnd);
  writer.join();
}

TEST_P(StreamTest, RefusalsAreTheRemotesErrors) {
  EXPECT_EQ(open("refuse").error().message, "VM 'x': no such VM");
  EXPECT_EQ(open("refuse").error().code, Code::not_found);
  EXPECT_EQ(open("nonsense").error().code, Code::not_found);
  EXPECT_EQ(open("shape", {{{"k", 1}}, {}}).error().code, Code::invalid);
}

TEST_P(StreamTest, AnErrorAfterTheStartArrivesAfterWhatWasSent) {
  auto stream = need(open("halfway"));
  EXPECT_EQ(need(stream.receive(kTestMs)).payload, some_bytes(10));
  const auto end = stream.receive(kTestMs);
  EXPECT_EQ(end.error().code, Code::host_failed);
  EXPECT_EQ(end.error().message, "disk is full");
}

TEST_P(StreamTest, NothingIsLostWhenTheSenderReturns) {
  auto stream = need(open("pour"));
  for (int i = 0; i < 200; ++i) ASSERT_EQ(need(stream.receive(kTestMs)).payload.size(), 100'000u);
  EXPECT_EQ(need(stream.receive(kTestMs)).type, kEnd);
}

TEST_P(StreamTest, AnOpenerThatGoesEndsTheOtherSide) {
  { const auto stream = need(open("wait")); }
  while (pair.server.connections() > 0) std::this_thread::yield();
  EXPECT_EQ(pair.pool.idle(), 0u);
}

TEST_P(StreamTest, InterruptWakesTheReader) {
  auto stream = need(open("wait"));
  std::thread other([&] { stream.interrupt(); });
  EXPECT_EQ(stream.receive(kForever).error().code, Code::unavailable);
  other.join();
}

TEST_P(StreamTest, OwnTypesAreNotForUse) {
  auto stream = need(open("echo"));
  EXPECT_FALSE(stream.send(kError, {}, kTestMs));
  need(stream.finish(kTestMs));
  EXPECT_FALSE(stream.send(kTestType, {}, kTestMs));
}

}  // namespace
}  // namespace snow::peer
