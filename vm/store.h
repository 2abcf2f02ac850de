// The record: what a daemon must know after it was killed. One SQLite file, state_dir/record.db,
// with one table of JSON values by kind and id ("vm", "ticket", "fork"...).
//
// A value that put() has returned for survives a crash of the daemon; power loss may lose the last
// moments, never what is older, and never corrupts (WAL, synchronous=NORMAL). The Store also is the
// daemon's claim on the state folder: state_dir/lock is locked while it lives. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

struct sqlite3;
struct sqlite3_stmt;

namespace snow {

class Store {
 public:
  // Makes the folder and the file where they are missing. Code::exists: another daemon holds the
  // folder (it is named); Code::invalid: the record was written by a newer version; Code::corrupt:
  // the file is not a record.
  static Result<std::unique_ptr<Store>> open(const std::string& state_dir);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Inserts or replaces. Well under a millisecond.
  Result<void> put(std::string_view kind, std::string_view id, const nlohmann::json& value);
  Result<void> remove(std::string_view kind, std::string_view id);  // not there: fine
  Result<std::optional<nlohmann::json>> get(std::string_view kind, std::string_view id);
  // (id, value) of all of a kind, by id.
  Result<std::vector<std::pair<std::string, nlohmann::json>>> list(std::string_view kind);

  // Runs `work`, which may call the methods above, as one unit: all of it or, if it fails, nothing
  // is recorded. Other threads wait meanwhile. A transaction within a transaction joins it.
  Result<void> transaction(const std::function<Result<void>()>& work);

 private:
  enum Statement { kPut, kRemove, kGet, kList, kBegin, kCommit, kRollback, kStatements };

  explicit Store(std::string path) : path_(std::move(path)) {}
  Result<void> open_database();
  Result<void> check_schema();
  Result<void> prepare_statements();
  Result<void> run(Statement statement);
  tl::unexpected<Error> failed(std::string_view what) const;

  const std::string path_;
  Fd lock_;
  std::recursive_mutex mutex_;
  int depth_ = 0;  // of transactions
  sqlite3* database_ = nullptr;
  sqlite3_stmt* statements_[kStatements] = {};
};

}  // namespace snow
