#include <thread>

#include "peer/calls.h"
#include "peer/test_cluster.h"

namespace snow::peer {
namespace {

struct CallsTest : testing::Test {
  CallsTest() : pair(false) {
    calls.add("double", [](const std::string&, const Message& in) -> Result<Message> {
      return Message{{{"n", in.json.at("n").get<int>() * 2}}, in.bytes};
    });
    calls.add("who", [](const std::string& from, const Message&) -> Result<Message> {
      return Message{{{"from", from}}, {}};
    });
    calls.add("refuse", [](const std::string&, const Message&) -> Result<Message> {
      return fail(Code::no_room, "host is full: {} of {} MiB", 9, 10);
    });
    calls.add("slow", [this](const std::string&, const Message&) -> Result<Message> {
      std::unique_lock lock(mutex);
      condition.wait(lock, [&] { return go_on; });
      return Message{};
    });
    calls.add("huge", [](const std::string&, const Message&) -> Result<Message> {
      return Message{{}, std::vector<std::byte>(kMaxFrameBytes)};
    });
    pair.server.add("calls", calls.service());
    pair.start();
  }
  ~CallsTest() override {
    const std::lock_guard lock(mutex);
    go_on = true;
    condition.notify_all();
  }
  Result<Message> call(std::string_view method, const Message& message = {},
                       int timeout_ms = kTestMs) {
    return peer::call(pair.pool, kHostA, method, message, timeout_ms);
  }

  std::mutex mutex;
  std::condition_variable condition;
  bool go_on = false;
  Calls calls;
  TestPair pair;
};

TEST_F(CallsTest, JsonAndAttachmentThereAndBack) {
  for (const size_t size : {0, 1, 5000, 2'000'000}) {
    const auto answer = need(call("double", {{{"n", 21}}, some_bytes(size)}));
    EXPECT_EQ(answer.json.at("n"), 42);
    EXPECT_TRUE(answer.bytes == some_bytes(size));
  }
  EXPECT_EQ(pair.pool.idle(), 1u);
}

TEST_F(CallsTest, TheCallerIsKnown) { EXPECT_EQ(need(call("who")).json.at("from"), kHostB); }

TEST_F(CallsTest, TheRemotesErrorIsThatError) {
  const auto answer = call("refuse");
  EXPECT_EQ(answer.error().code, Code::no_room);
  EXPECT_EQ(answer.error().message, "host is full: 9 of 10 MiB");
  EXPECT_EQ(pair.pool.idle(), 1u);
}

TEST_F(CallsTest, WrongArgumentsAndMethods) {
  EXPECT_EQ(call("double", {{{"m", 1}}, {}}).error().code, Code::invalid);
  EXPECT_EQ(call("double", {"text", {}}).error().code, Code::invalid);
  EXPECT_EQ(call("nonsense").error().code, Code::not_found);
  EXPECT_EQ(call("").error().code, Code::invalid);
  EXPECT_EQ(need(call("double", {{{"n", 1}}, {}})).json.at("n"), 2);
}

TEST_F(CallsTest, TextThatIsNotUtf8Arrives) {
  nlohmann::json json{{"n", 1}, {"text", "\xff\xfe"}};
  EXPECT_TRUE(call("double", {json, {}}));
}

TEST_F(CallsTest, JsonThatIsTooDeepOrTooLong) {
  nlohmann::json deep = 1;
  for (int i = 0; i < 100; ++i) deep = nlohmann::json::array({deep});
  EXPECT_EQ(call("who", {deep, {}}).error().code, Code::corrupt);
  EXPECT_EQ(call("who", {std::string(9'000'000, 'x'), {}}).error().code, Code::invalid);
  EXPECT_TRUE(call("who", {std::string(10'000, '['), {}}));
}

TEST_F(CallsTest, AnAnswerThatIsTooLongIsAnErrorAndTheNextCallWorks) {
  EXPECT_EQ(call("huge").error().code, Code::invalid);
  EXPECT_TRUE(call("who"));
}

TEST_F(CallsTest, ALateAnswerIsNotTakenForTheNext) {
  EXPECT_EQ(call("slow", {}, 30).error().code, Code::timed_out);
  EXPECT_EQ(pair.pool.idle(), 0u);
  {
    const std::lock_guard lock(mutex);
    go_on = true;
    condition.notify_all();
  }
  EXPECT_EQ(need(call("who")).json.at("from"), kHostB);
}

TEST_F(CallsTest, ManyAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        EXPECT_EQ(need(call("double", {{{"n", t * 1000 + i}}, {}})).json.at("n"),
                  2 * (t * 1000 + i));
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace snow::peer
