// A directory in a SQLite file, for a cluster of one host. It can be opened several times, also by
// several processes of one host. What a commit returned for survives a crash of the daemon; power
// loss may lose the last moments. Leases end by the host's clock, and with a reboot.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "cluster/clock.h"
#include "cluster/directory.h"

struct sqlite3;
struct sqlite3_stmt;

namespace snow {

class SqliteDirectory : public Directory {
 public:
  // Makes the file where it is missing. Code::corrupt: not such a file; Code::invalid: written by a
  // newer version.
  static Result<std::unique_ptr<SqliteDirectory>> open(const std::string& path,
                                                       Clock clock = lease_clock_ns);
  ~SqliteDirectory() override;

  Result<std::optional<Entry>> get(const std::string& key) override;
  Result<std::vector<Entry>> list(const std::string& prefix,
                                  std::vector<Damaged>* damaged = nullptr) override;
  Result<bool> commit(const Transaction& transaction) override;
  Result<LeaseId> grant(unsigned seconds) override;
  Result<void> keep_alive(LeaseId lease) override;
  Result<void> revoke(LeaseId lease) override;

 private:
  class Use;  // a prepared statement in use

  SqliteDirectory(std::string path, Clock clock)
      : path_(std::move(path)), clock_(std::move(clock)) {}
  Result<void> open_database();
  Result<void> make_tables();
  Result<void> end_leases_of_another_boot();
  Result<sqlite3_stmt*> statement(const char* sql);  // prepared once, kept
  // Runs `work` in one transaction of SQLite, after the leases that are over were ended.
  Result<void> in_transaction(const std::function<Result<void>()>& work);
  Result<void> end_old_leases();
  Result<void> end_lease(LeaseId lease);
  Result<bool> holds(const Transaction::Compare& compare);
  Result<bool> lease_lives(LeaseId lease);
  Result<uint64_t> next_revision();
  Result<void> execute(const char* sql);
  tl::unexpected<Error> failed(const char* what) const;

  const std::string path_;
  const Clock clock_;
  std::mutex mutex_;
  sqlite3* database_ = nullptr;
  std::vector<std::pair<const char*, sqlite3_stmt*>> statements_;
};

}  // namespace snow
