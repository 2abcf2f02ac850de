#include "vm/outbox.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>

#include "base/file.h"
#include "base/test_folder.h"

namespace snow {
namespace {

using namespace std::chrono_literals;

template <class Condition>
bool eventually(Condition condition) {
  for (int i = 0; i < 1000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(5ms);
  }
  return false;
}

// What was sent, in order, and a switch that makes hosts unreachable.
struct Network {
  std::mutex mutex;
  std::vector<std::string> sent;
  std::set<std::string> away;
  std::map<std::string, Code> refusal;

  Outbox::Send send() {
    return [this](const Outbox::Item& item) -> Result<void> {
      const std::lock_guard lock(mutex);
      if (away.contains(item.host)) return fail(Code::unavailable, "host {}: away", item.host);
      if (refusal.contains(item.method)) return fail(refusal[item.method], "no");
      sent.push_back(item.host + " " + item.method + " " + item.content.dump());
      return {};
    };
  }
  size_t count() {
    const std::lock_guard lock(mutex);
    return sent.size();
  }
  void set_away(const std::string& host, bool is_away) {
    const std::lock_guard lock(mutex);
    if (is_away) {
      away.insert(host);
    } else {
      away.erase(host);
    }
  }
};

TEST(Outbox, DeliversInOrderAndForgets) {
  const TestFolder folder;
  auto store = Store::open(folder.path());
  ASSERT_TRUE(store);
  Network network;
  auto outbox = Outbox::open(**store, network.send());
  ASSERT_TRUE(outbox);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE((*outbox)->add({"a", "ended", {{"i", i}}, ""}));
  ASSERT_TRUE(eventually([&] { return network.count() == 20; }));
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(network.sent[static_cast<size_t>(i)], fmt::format("a ended {{\"i\":{}}}", i));
  }
  EXPECT_TRUE(eventually([&] { return (*store)->list("owed")->empty(); }));
}

TEST(Outbox, AHostThatIsAwayHoldsUpNobodyElse) {
  const TestFolder folder;
  auto store = Store::open(folder.path());
  Network network;
  network.set_away("a", true);
  auto outbox = Outbox::open(**store, network.send());
  ASSERT_TRUE((*outbox)->add({"a", "ended", {}, ""}));
  ASSERT_TRUE((*outbox)->add({"b", "ended", {}, ""}));
  EXPECT_TRUE(eventually([&] { return network.count() == 1; }));
  EXPECT_EQ((*outbox)->waiting("a"), 1u);
  network.set_away("a", false);
  (*outbox)->hurry("a");
  EXPECT_TRUE(eventually([&] { return network.count() == 2; }));
}

TEST(Outbox, TheNextDaemonSendsWhatIsOwed) {
  const TestFolder folder;
  auto store = Store::open(folder.path());
  Network network;
  network.set_away("a", true);
  const std::string file = folder.path() + "/result";
  ASSERT_TRUE(write_file(file, "bytes"));
  {
    auto outbox = Outbox::open(**store, network.send());
    ASSERT_TRUE((*outbox)->add({"a", "first", {}, file}));
    ASSERT_TRUE((*outbox)->add({"a", "second", {}, ""}));
  }
  EXPECT_TRUE(std::filesystem::exists(file));
  network.set_away("a", false);
  auto outbox = Outbox::open(**store, network.send());
  ASSERT_TRUE((*outbox)->add({"a", "third", {}, ""}));
  ASSERT_TRUE(eventually([&] { return network.count() == 3; }));
  EXPECT_EQ(network.sent[0], "a first null");
  EXPECT_EQ(network.sent[1], "a second null");
  EXPECT_EQ(network.sent[2], "a third null");
  EXPECT_TRUE(eventually([&] { return !std::filesystem::exists(file); }));
}

TEST(Outbox, ARefusalEndsTheMessageAFaultDoesNot) {
  const TestFolder folder;
  auto store = Store::open(folder.path());
  Network network;
  network.refusal = {{"wrong", Code::usage}, {"full", Code::host_failed}};
  auto outbox = Outbox::open(**store, network.send());
  ASSERT_TRUE((*outbox)->add({"a", "wrong", {}, ""}));
  ASSERT_TRUE((*outbox)->add({"a", "fine", {}, ""}));
  EXPECT_TRUE(eventually([&] { return network.count() == 1; }));
  ASSERT_TRUE((*outbox)->add({"a", "full", {}, ""}));
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ((*outbox)->waiting("a"), 1u);
  (*outbox)->forget("a");
  EXPECT_EQ((*outbox)->waiting("a"), 0u);
  EXPECT_TRUE(eventually([&] { return (*store)->list("owed")->empty(); }));
}

}  // namespace
}  // namespace snow
