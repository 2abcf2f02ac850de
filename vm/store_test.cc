#include "vm/store.h"

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "base/test_folder.h"

namespace snow {
namespace {

using nlohmann::json;

TEST(Store, KeepsWhatWasPut) {
  const TestFolder folder;
  {
    auto store = Store::open(folder.path());
    ASSERT_TRUE(store) << store.error().message;
    ASSERT_TRUE((*store)->put("vm", "b", {{"n", 1}}));
    ASSERT_TRUE((*store)->put("vm", "a", {{"n", 2}}));
    ASSERT_TRUE((*store)->put("vm", "b", {{"n", 3}}));
    ASSERT_TRUE((*store)->put("ticket", "b", json::object()));
    ASSERT_TRUE((*store)->remove("ticket", "none"));
    ASSERT_TRUE((*store)->put("", "", json("\xff not UTF-8")));
  }
  auto store = Store::open(folder.path());
  ASSERT_TRUE(store) << store.error().message;
  const auto all = (*store)->list("vm");
  ASSERT_TRUE(all);
  ASSERT_EQ(all->size(), 2u);
  EXPECT_EQ((*all)[0].first, "a");
  EXPECT_EQ((*all)[1].second["n"], 3);
  ASSERT_TRUE((*store)->remove("vm", "a"));
  EXPECT_FALSE((*store)->get("vm", "a").value().has_value());
  EXPECT_TRUE((*store)->get("", "").value().has_value());
}

TEST(Store, ASecondDaemonIsRefusedAndToldWhoHoldsTheFolder) {
  const TestFolder folder;
  const auto first = Store::open(folder.path());
  ASSERT_TRUE(first);
  const auto second = Store::open(folder.path());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::exists);
  EXPECT_NE(second.error().message.find(std::to_string(::getpid())), std::string::npos);
  EXPECT_NE(second.error().message.find(folder.path()), std::string::npos);
}

TEST(Store, SurvivesADaemonThatIsKilled) {
  const TestFolder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    auto store = Store::open(folder.path());
    for (int i = 0; store && i < 100; ++i) {
      if (!(*store)->put("vm", std::to_string(i), i)) ::_exit(1);
    }
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  auto store = Store::open(folder.path());
  ASSERT_TRUE(store) << store.error().message;
  EXPECT_EQ((*store)->list("vm")->size(), 100u);
}

TEST(Store, ATransactionIsAllOrNothing) {
  const TestFolder folder;
  auto store = Store::open(folder.path()).value();
  const auto failed = store->transaction([&]() -> Result<void> {
    SNOW_TRY(store->put("vm", "a", 1));
    SNOW_TRY(store->transaction([&] { return store->put("vm", "b", 1); }));
    return fail(Code::no_room, "no");
  });
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, Code::no_room);
  EXPECT_TRUE(store->list("vm")->empty());
  EXPECT_THROW((void)store->transaction([&]() -> Result<void> {
    (void)store->put("vm", "a", 1);
    throw std::runtime_error("work failed");
  }),
               std::runtime_error);
  EXPECT_TRUE(store->list("vm")->empty());
  EXPECT_TRUE(store->transaction([&] { return store->put("vm", "a", 1); }));
  EXPECT_EQ(store->list("vm")->size(), 1u);
}

TEST(Store, ManyThreads) {
  const TestFolder folder;
  auto store = Store::open(folder.path()).value();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        EXPECT_TRUE(store->transaction([&]() -> Result<void> {
          SNOW_TRY(store->put("vm", std::to_string(t), i));
          return store->put("vm", std::to_string(t) + "again", i);
        }));
        EXPECT_TRUE(store->list("vm"));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(store->list("vm")->size(), 8u);
}

TEST(Store, ANewerRecordIsRefused) {
  const TestFolder folder;
  ASSERT_TRUE(Store::open(folder.path()));
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open((folder / "record.db").c_str(), &database), SQLITE_OK);
  sqlite3_exec(database, "PRAGMA user_version = 99", nullptr, nullptr, nullptr);
  sqlite3_close(database);
  const auto refused = Store::open(folder.path());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::invalid);
  EXPECT_NE(refused.error().message.find("newer"), std::string::npos);
}

TEST(Store, AFileThatIsNoRecordIsRefused) {
  const TestFolder folder;
  ASSERT_TRUE(write_file(folder / "record.db", std::string(8192, 'x')));
  const auto refused = Store::open(folder.path());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::corrupt);
}

}  // namespace
}  // namespace snow
