// The contract of the directory, held against both implementations: a SQLite file and a real etcd.
#include "cluster/directory.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/test_folder.h"
#include "cluster/etcd_directory.h"
#include "cluster/sqlite_directory.h"
#include "cluster/test_etcd.h"

namespace snow {
namespace {

using nlohmann::json;

// Where a test's directory comes from. Several open()s show the same content.
struct Place {
  virtual ~Place() = default;
  virtual std::unique_ptr<Directory> open() = 0;
};

struct SqlitePlace : Place {
  TestFolder folder;
  std::unique_ptr<Directory> open() override {
    return std::move(SqliteDirectory::open(folder / "directory.db").value());
  }
};

// One etcd for all tests of the program, each with a prefix of its own.
struct EtcdPlace : Place {
  static TestEtcd& etcd() {
    static TestEtcd instance;
    return instance;
  }
  std::string prefix = "/snow/" + random_hex(8) + "/";
  std::unique_ptr<Directory> open() override {
    EtcdOptions options = etcd().options();
    options.prefix = prefix;
    return std::move(EtcdDirectory::make(options).value());
  }
};

class DirectoryTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (GetParam() == std::string("etcd")) {
      place_ = std::make_unique<EtcdPlace>();
    } else {
      place_ = std::make_unique<SqlitePlace>();
    }
    directory_ = place_->open();
  }
  bool put(const std::string& key, const json& value, LeaseId lease = kNoLease) {
    Transaction transaction;
    transaction.puts.push_back({key, value, lease});
    return directory_->commit(transaction).value();
  }
  json value(const std::string& key) {
    const auto entry = directory_->get(key).value();
    return entry ? entry->value : json();
  }
  std::unique_ptr<Place> place_;
  std::unique_ptr<Directory> directory_;
};

TEST_P(DirectoryTest, WhatWasPutIsThereForEveryone) {
  EXPECT_EQ(directory_->get("host/a").value(), std::nullopt);
  const json written = {{"name", "alpha ü \u0001"}, {"list", {1, 2, nullptr}}, {"big", UINT64_MAX}};
  ASSERT_TRUE(put("host/a", written));
  const auto other = place_->open();
  const auto read = other->get("host/a").value();
  ASSERT_TRUE(read);
  EXPECT_EQ(read->value, written);
  EXPECT_EQ(read->key, "host/a");
  EXPECT_GT(read->revision, 0u);
}

TEST_P(DirectoryTest, ListGivesWhatBeginsWithThePrefixByKey) {
  for (const char* key : {"vm/b", "vm/a", "vn/x", "host/a", "vm/a.b", "v"}) put(key, key);
  std::vector<std::string> keys;
  const auto all = directory_->list("vm/").value();
  for (const auto& entry : all) {
    EXPECT_EQ(entry.value, entry.key);
    keys.push_back(entry.key);
  }
  EXPECT_EQ(keys, (std::vector<std::string>{"vm/a", "vm/a.b", "vm/b"}));
  EXPECT_EQ(directory_->list("").value().size(), 6u);
  EXPECT_EQ(directory_->list("nothing/").value().size(), 0u);
}

TEST_P(DirectoryTest, RevisionsGrowAndBelongToTheKeysLastChange) {
  put("a", 1);
  const auto first = directory_->get("a").value()->revision;
  put("b", 1);
  EXPECT_EQ(directory_->get("a").value()->revision, first);
  const auto second = directory_->get("b").value()->revision;
  EXPECT_GT(second, first);
  put("a", 2);
  EXPECT_GT(directory_->get("a").value()->revision, second);
}

TEST_P(DirectoryTest, AChangeHappensOnlyIfEveryCompareHolds) {
  put("a", 1);
  const auto revision = directory_->get("a").value()->revision;
  Transaction transaction;
  transaction.compares = {{"a", revision}, {"b", Transaction::kAbsent}};
  transaction.puts = {{"a", 2, kNoLease}, {"b", 2, kNoLease}};
  EXPECT_TRUE(directory_->commit(transaction).value());
  EXPECT_FALSE(directory_->commit(transaction).value());  // neither holds now
  transaction.compares = {{"a", directory_->get("a").value()->revision}, {"b", 0}};
  transaction.puts = {{"a", 3, kNoLease}};
  transaction.removes = {"b"};
  EXPECT_FALSE(directory_->commit(transaction).value());  // "b" exists
  EXPECT_EQ(value("a"), 2);
  EXPECT_EQ(value("b"), 2);
}

TEST_P(DirectoryTest, AKeyCanBeComparedWithBeingThere) {
  Transaction transaction;
  transaction.compares = {{"host/a", Transaction::kPresent}};
  transaction.puts = {{"vm/1", 1, kNoLease}};
  EXPECT_FALSE(directory_->commit(transaction).value());
  put("host/a", 1);
  EXPECT_TRUE(directory_->commit(transaction).value());
}

TEST_P(DirectoryTest, RemovesAreFineForWhatIsNotThere) {
  put("a", 1);
  Transaction transaction;
  transaction.removes = {"a", "never"};
  EXPECT_TRUE(directory_->commit(transaction).value());
  EXPECT_EQ(directory_->get("a").value(), std::nullopt);
  // A key that came back is another than the one that was there before.
  put("a", 2);
  transaction.compares = {{"a", 1}};
  EXPECT_FALSE(directory_->commit(transaction).value());
}

TEST_P(DirectoryTest, ATransactionOfComparesOnlyAsks) {
  put("a", 1);
  Transaction transaction;
  transaction.compares = {{"a", Transaction::kPresent}};
  EXPECT_TRUE(directory_->commit(transaction).value());
  transaction.compares = {{"a", Transaction::kAbsent}};
  EXPECT_FALSE(directory_->commit(transaction).value());
}

TEST_P(DirectoryTest, LimitsAreRefusedWithTheirFigures) {
  Transaction transaction;
  for (size_t i = 0; i < Directory::kMaxOperations; ++i) {
    transaction.puts.push_back({fmt::format("k/{}", i), i, kNoLease});
    transaction.compares.push_back({fmt::format("k/{}", i), 0});
  }
  EXPECT_TRUE(directory_->commit(transaction).value());
  transaction.compares.clear();
  transaction.removes.push_back("one-more");
  const auto refused = directory_->commit(transaction);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::invalid);
  EXPECT_NE(refused.error().message.find("129"), std::string::npos) << refused.error().message;

  Transaction big;
  big.puts = {{"big", std::string(Directory::kMaxValueBytes - 2, 'x'), kNoLease}};
  EXPECT_TRUE(directory_->commit(big).value());
  big.puts[0].value = std::string(Directory::kMaxValueBytes, 'x');
  EXPECT_EQ(directory_->commit(big).error().code, Code::invalid);
  big.puts.clear();
  for (int i = 0; i < 20; ++i) {
    big.puts.push_back({fmt::format("big/{}", i), std::string(60'000, 'x'), kNoLease});
  }
  EXPECT_EQ(directory_->commit(big).error().code, Code::invalid);
}

TEST_P(DirectoryTest, AsMuchAsIsAllowedIsTaken) {
  Transaction transaction;
  for (int i = 0; i < 16; ++i) {
    transaction.puts.push_back({fmt::format("k/{}", i), std::string(65'000, 'x'), kNoLease});
  }
  EXPECT_TRUE(directory_->commit(transaction).value());
  EXPECT_EQ(directory_->list("k/").value().size(), 16u);
}

TEST_P(DirectoryTest, WrongKeysAreRefused) {
  const std::vector<std::string> wrong = {
      "", "/a", "a/", "a//b", "a b", "a\n", std::string(1, '\0'), "ä", std::string(300, 'a')};
  for (const auto& key : wrong) {
    EXPECT_EQ(directory_->get(key).error().code, Code::invalid) << key;
    Transaction transaction;
    transaction.removes = {key};
    EXPECT_EQ(directory_->commit(transaction).error().code, Code::invalid) << key;
  }
  Transaction twice;
  twice.puts = {{"a", 1, kNoLease}};
  twice.removes = {"a"};
  EXPECT_EQ(directory_->commit(twice).error().code, Code::invalid);
  Transaction deep;
  json nested = 1;
  for (int i = 0; i < 50; ++i) nested = json::array({nested});
  deep.puts = {{"a", nested, kNoLease}};
  EXPECT_EQ(directory_->commit(deep).error().code, Code::invalid);
}

TEST_P(DirectoryTest, BytesThatAreNotUtf8AreReplaced) {
  ASSERT_TRUE(put("a", std::string("\xff\xfe")));
  EXPECT_TRUE(value("a").is_string());
}

TEST_P(DirectoryTest, KeysEndWithTheirLease) {
  const LeaseId lease = directory_->grant(60).value();
  put("host/a", 1, lease);
  put("host/b", 1, lease);
  put("host/c", 1);
  put("host/b", 2);  // without the lease now: stays
  EXPECT_TRUE(directory_->keep_alive(lease));
  EXPECT_TRUE(directory_->revoke(lease));
  EXPECT_EQ(directory_->get("host/a").value(), std::nullopt);
  EXPECT_EQ(value("host/b"), 2);
  EXPECT_EQ(value("host/c"), 1);
  EXPECT_EQ(directory_->keep_alive(lease).error().code, Code::not_found);
  EXPECT_EQ(directory_->revoke(lease).error().code, Code::not_found);
  Transaction transaction;
  transaction.puts = {{"host/d", 1, kNoLease}, {"host/e", 1, lease}};
  EXPECT_EQ(directory_->commit(transaction).error().code, Code::not_found);
  EXPECT_EQ(directory_->get("host/d").value(), std::nullopt);
}

TEST_P(DirectoryTest, ALeaseThatNobodyKeepsAliveEnds) {
  const LeaseId kept = directory_->grant(2).value();
  const LeaseId left = directory_->grant(2).value();
  put("kept", 1, kept);
  put("left", 1, left);
  const auto granted = lease_clock_ns();
  while (directory_->get("left").value()) {
    ASSERT_TRUE(directory_->keep_alive(kept));
    ASSERT_LT(lease_clock_ns() - granted, 60 * kSecondNs);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_GE(lease_clock_ns() - granted, 2 * kSecondNs - 50'000'000);
  EXPECT_EQ(value("kept"), 1);
  EXPECT_EQ(directory_->grant(0).error().code, Code::invalid);
  EXPECT_EQ(directory_->grant(1'000'000).error().code, Code::invalid);
}

TEST_P(DirectoryTest, OfManyWhoCompareTheSameOneWins) {
  // Eight threads count to 20 each, as compare-and-set loops over connections of their own.
  put("counter", 0);
  std::atomic<int> lost{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, own = i % 2 == 0 ? nullptr : place_->open()] {
      Directory& mine = own ? *own : *directory_;
      for (int done = 0; done < 20;) {
        const auto now = mine.get("counter").value();
        Transaction transaction;
        transaction.compares = {{"counter", now->revision}};
        transaction.puts = {{"counter", now->value.get<int>() + 1, kNoLease}};
        if (mine.commit(transaction).value()) {
          ++done;
        } else {
          ++lost;
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(value("counter"), 160);
}

TEST_P(DirectoryTest, TenThousandKeysAreListedWhole) {
  constexpr int kCount = 10'000;
  for (int begin = 0; begin < kCount; begin += 100) {
    Transaction transaction;
    for (int i = begin; i < begin + 100; ++i) {
      transaction.puts.push_back({fmt::format("vm/{:05}", i), {{"number", i}}, kNoLease});
    }
    ASSERT_TRUE(directory_->commit(transaction).value());
  }
  const auto all = directory_->list("vm/").value();
  ASSERT_EQ(all.size(), static_cast<size_t>(kCount));
  for (int i = 0; i < kCount; ++i) {
    ASSERT_EQ(all[static_cast<size_t>(i)].key, fmt::format("vm/{:05}", i));
    ASSERT_EQ(all[static_cast<size_t>(i)].value["number"], i);
  }
}

INSTANTIATE_TEST_SUITE_P(Both, DirectoryTest, testing::Values("sqlite", "etcd"),
                         [](const auto& param_info) { return std::string(param_info.param); });

}  // namespace
}  // namespace snow
