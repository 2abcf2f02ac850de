#include "cluster/sqlite_directory.h"

#include <sqlite3.h>

#include "base/file.h"

namespace snow {
namespace {

constexpr int kSchema = 1;
constexpr int kBusyMs = 5000;
constexpr const char* kTables =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS entry(key TEXT PRIMARY KEY, json TEXT NOT NULL,"
    " revision INTEGER NOT NULL, lease INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS entry_lease ON entry(lease) WHERE lease != 0;"
    "CREATE TABLE IF NOT EXISTS lease(id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " seconds INTEGER NOT NULL, deadline_ns INTEGER NOT NULL);"
    "INSERT OR IGNORE INTO meta VALUES('revision', 0);"
    "PRAGMA user_version = 1;"
    "COMMIT";

constexpr const char* kGet = "SELECT json, revision FROM entry WHERE key = ?1";
constexpr const char* kListAll = "SELECT key, json, revision FROM entry ORDER BY key";
constexpr const char* kList =
    "SELECT key, json, revision FROM entry WHERE key >= ?1 AND key < ?2 ORDER BY key";
constexpr const char* kPut = "INSERT OR REPLACE INTO entry VALUES(?1, ?2, ?3, ?4)";
constexpr const char* kRemove = "DELETE FROM entry WHERE key = ?1";
constexpr const char* kRemoveLeased = "DELETE FROM entry WHERE lease = ?1";
constexpr const char* kNextRevision =
    "UPDATE meta SET value = value + 1 WHERE name = 'revision' RETURNING value";
constexpr const char* kLease = "SELECT seconds FROM lease WHERE id = ?1";
constexpr const char* kGrant =
    "INSERT INTO lease(seconds, deadline_ns) VALUES(?1, ?2) RETURNING id";
constexpr const char* kKeep = "UPDATE lease SET deadline_ns = ?2 WHERE id = ?1";
constexpr const char* kEnd = "DELETE FROM lease WHERE id = ?1";
constexpr const char* kOld = "SELECT id FROM lease WHERE deadline_ns <= ?1";
constexpr const char* kAllLeases = "SELECT id FROM lease";
constexpr const char* kBoot = "SELECT value FROM meta WHERE name = 'boot'";
constexpr const char* kSetBoot = "INSERT OR REPLACE INTO meta VALUES('boot', ?1)";
constexpr const char* kVersion = "PRAGMA user_version";

}  // namespace

// Bound and stepped, and reset whatever happens.
class SqliteDirectory::Use {
 public:
  explicit Use(sqlite3_stmt* statement) : statement_(statement) {}
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  ~Use() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  void bind(int index, std::string_view text) {
    sqlite3_bind_text64(statement_, index, text.empty() ? "" : text.data(), text.size(),
                        SQLITE_TRANSIENT, SQLITE_UTF8);
  }
  void bind(int index, uint64_t number) {
    sqlite3_bind_int64(statement_, index, static_cast<sqlite3_int64>(number));
  }
  int step() { return sqlite3_step(statement_); }
  [[nodiscard]] std::string text(int column) const {
    const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    if (bytes == nullptr) return {};
    return {bytes, static_cast<size_t>(sqlite3_column_bytes(statement_, column))};
  }
  [[nodiscard]] uint64_t number(int column) const {
    return static_cast<uint64_t>(sqlite3_column_int64(statement_, column));
  }

 private:
  sqlite3_stmt* statement_;
};

Result<std::unique_ptr<SqliteDirectory>> SqliteDirectory::open(const std::string& path,
                                                               Clock clock) {
  std::unique_ptr<SqliteDirectory> directory(new SqliteDirectory(path, std::move(clock)));
  SNOW_TRY(directory->open_database());
  SNOW_TRY(directory->make_tables());
  SNOW_TRY(directory->end_leases_of_another_boot());
  return directory;
}

SqliteDirectory::~SqliteDirectory() {
  for (const auto& [sql, prepared] : statements_) sqlite3_finalize(prepared);
  sqlite3_close(database_);
}

tl::unexpected<Error> SqliteDirectory::failed(const char* what) const {
  const int code = database_ == nullptr ? SQLITE_NOMEM : sqlite3_errcode(database_);
  const char* text = database_ == nullptr ? "out of memory" : sqlite3_errmsg(database_);
  if (code == SQLITE_NOTADB || code == SQLITE_CORRUPT) {
    return fail(Code::corrupt, "{}: {}: {}; move it away to start with an empty directory", path_,
                what, text);
  }
  if (code == SQLITE_BUSY) {
    return fail(Code::unavailable, "{}: {}: in use by another process for {} s", path_, what,
                kBusyMs / 1000);
  }
  if (code == SQLITE_FULL) {
    return fail(Code::host_failed, "{}: {}: {}; free space on its file system", path_, what, text);
  }
  return fail(Code::host_failed, "{}: {}: {}", path_, what, text);
}

Result<void> SqliteDirectory::execute(const char* sql) {
  if (sqlite3_exec(database_, sql, nullptr, nullptr, nullptr) != SQLITE_OK)
    return failed("cannot use");
  return {};
}

Result<sqlite3_stmt*> SqliteDirectory::statement(const char* sql) {
  for (const auto& [known, prepared] : statements_) {
    if (known == sql) return prepared;
  }
  sqlite3_stmt* prepared = nullptr;
  if (sqlite3_prepare_v3(database_, sql, -1, SQLITE_PREPARE_PERSISTENT, &prepared, nullptr) !=
      SQLITE_OK) {
    return failed("cannot prepare");
  }
  statements_.emplace_back(sql, prepared);
  return prepared;
}

Result<void> SqliteDirectory::open_database() {
  // mutex_ serialises the use of this connection; other connections are kept out by file locks.
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  if (sqlite3_open_v2(path_.c_str(), &database_, flags, nullptr) != SQLITE_OK) {
    return failed("cannot open");
  }
  sqlite3_busy_timeout(database_, kBusyMs);
  return execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL");
}

Result<void> SqliteDirectory::make_tables() {
  uint64_t version = 0;
  {
    SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kVersion));
    Use use(prepared);
    if (use.step() != SQLITE_ROW) return failed("cannot read the version");
    version = use.number(0);
  }
  if (version > kSchema) {
    return fail(Code::invalid,
                "{}: written by a newer Thundersnow (directory version {}, this one knows {}); "
                "start that version",
                path_, version, kSchema);
  }
  if (version == kSchema) return {};
  return execute(kTables);
}

Result<void> SqliteDirectory::end_leases_of_another_boot() {
  // The deadlines on record count by a clock that began anew.
  SNOW_ASSIGN(const std::string boot, read_file("/proc/sys/kernel/random/boot_id", 100));
  return in_transaction([&]() -> Result<void> {
    {
      SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kBoot));
      Use use(prepared);
      if (use.step() == SQLITE_ROW && use.text(0) == boot) return {};
    }
    std::vector<LeaseId> leases;
    {
      SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kAllLeases));
      Use use(prepared);
      while (use.step() == SQLITE_ROW) leases.push_back(use.number(0));
    }
    for (const LeaseId lease : leases) SNOW_TRY(end_lease(lease));
    SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kSetBoot));
    Use use(prepared);
    use.bind(1, boot);
    if (use.step() != SQLITE_DONE) return failed("cannot write");
    return {};
  });
}

Result<void> SqliteDirectory::in_transaction(const std::function<Result<void>()>& work) {
  const std::lock_guard lock(mutex_);
  SNOW_TRY(execute("BEGIN IMMEDIATE"));
  auto done = end_old_leases();
  if (done) done = work();
  if (done) done = execute("COMMIT");
  if (!done && sqlite3_get_autocommit(database_) == 0) (void)execute("ROLLBACK");
  return done;
}

Result<void> SqliteDirectory::end_old_leases() {
  std::vector<LeaseId> old;
  {
    SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kOld));
    Use use(prepared);
    use.bind(1, static_cast<uint64_t>(clock_()));
    int step = use.step();
    for (; step == SQLITE_ROW; step = use.step()) old.push_back(use.number(0));
    if (step != SQLITE_DONE) return failed("cannot read leases");
  }
  for (const LeaseId lease : old) SNOW_TRY(end_lease(lease));
  return {};
}

Result<void> SqliteDirectory::end_lease(LeaseId lease) {
  for (const char* sql : {kRemoveLeased, kEnd}) {
    SNOW_ASSIGN(sqlite3_stmt * prepared, statement(sql));
    Use use(prepared);
    use.bind(1, lease);
    if (use.step() != SQLITE_DONE) return failed("cannot end a lease");
  }
  return {};
}

Result<std::optional<Directory::Entry>> SqliteDirectory::get(const std::string& key) {
  SNOW_TRY(check_key(key));
  std::optional<Entry> found;
  SNOW_TRY(in_transaction([&]() -> Result<void> {
    SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kGet));
    Use use(prepared);
    use.bind(1, key);
    const int step = use.step();
    if (step == SQLITE_DONE) return {};
    if (step != SQLITE_ROW) return failed("cannot read");
    SNOW_ASSIGN(auto value, parse_stored_value(key, use.text(0)));
    found = Entry{key, std::move(value), use.number(1)};
    return {};
  }));
  return found;
}

Result<std::vector<Directory::Entry>> SqliteDirectory::list(const std::string& prefix,
                                                            std::vector<Damaged>* damaged) {
  SNOW_TRY(check_prefix(prefix));
  std::vector<Entry> all;
  SNOW_TRY(in_transaction([&]() -> Result<void> {
    SNOW_ASSIGN(sqlite3_stmt * prepared, statement(prefix.empty() ? kListAll : kList));
    Use use(prepared);
    if (!prefix.empty()) {
      use.bind(1, prefix);
      use.bind(2, end_of_prefix(prefix));
    }
    int step = use.step();
    for (; step == SQLITE_ROW; step = use.step()) {
      auto value = parse_stored_value(use.text(0), use.text(1));
      if (value) {
        all.push_back(Entry{use.text(0), std::move(*value), use.number(2)});
      } else if (damaged != nullptr) {
        damaged->push_back({use.text(0), value.error()});
      } else {
        return tl::unexpected<Error>(value.error());
      }
    }
    if (step != SQLITE_DONE) return failed("cannot list");
    return {};
  }));
  return all;
}

Result<bool> SqliteDirectory::holds(const Transaction::Compare& compare) {
  SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kGet));
  Use use(prepared);
  use.bind(1, compare.key);
  const int step = use.step();
  if (step != SQLITE_ROW && step != SQLITE_DONE) return failed("cannot read");
  const uint64_t revision = step == SQLITE_ROW ? use.number(1) : Transaction::kAbsent;
  if (compare.revision == Transaction::kPresent) return revision != Transaction::kAbsent;
  return revision == compare.revision;
}

Result<bool> SqliteDirectory::lease_lives(LeaseId lease) {
  SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kLease));
  Use use(prepared);
  use.bind(1, lease);
  const int step = use.step();
  if (step != SQLITE_ROW && step != SQLITE_DONE) return failed("cannot read leases");
  return step == SQLITE_ROW;
}

Result<uint64_t> SqliteDirectory::next_revision() {
  SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kNextRevision));
  Use use(prepared);
  if (use.step() != SQLITE_ROW) return failed("cannot raise the revision");
  const uint64_t revision = use.number(0);
  if (use.step() != SQLITE_DONE) return failed("cannot raise the revision");
  return revision;
}

Result<bool> SqliteDirectory::commit(const Transaction& transaction) {
  SNOW_ASSIGN(const std::vector<std::string> texts, check_transaction(transaction));
  bool held = true;
  SNOW_TRY(in_transaction([&]() -> Result<void> {
    for (const auto& compare : transaction.compares) {
      SNOW_ASSIGN(held, holds(compare));
      if (!held) return {};
    }
    SNOW_ASSIGN(const uint64_t revision, next_revision());
    for (size_t i = 0; i < transaction.puts.size(); ++i) {
      const auto& put = transaction.puts[i];
      if (put.lease != kNoLease) {
        SNOW_ASSIGN(const bool lives, lease_lives(put.lease));
        if (!lives) return fail(Code::not_found, "directory: lease {} is over", put.lease);
      }
      SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kPut));
      Use use(prepared);
      use.bind(1, put.key);
      use.bind(2, texts[i]);
      use.bind(3, revision);
      use.bind(4, put.lease);
      if (use.step() != SQLITE_DONE) return failed("cannot write");
    }
    for (const auto& key : transaction.removes) {
      SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kRemove));
      Use use(prepared);
      use.bind(1, key);
      if (use.step() != SQLITE_DONE) return failed("cannot remove");
    }
    return {};
  }));
  return held;
}

Result<LeaseId> SqliteDirectory::grant(unsigned seconds) {
  SNOW_TRY(check_lease_seconds(seconds));
  LeaseId lease = kNoLease;
  SNOW_TRY(in_transaction([&]() -> Result<void> {
    SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kGrant));
    Use use(prepared);
    use.bind(1, uint64_t{seconds});
    use.bind(2, static_cast<uint64_t>(clock_() + seconds * kSecondNs));
    if (use.step() != SQLITE_ROW) return failed("cannot grant a lease");
    lease = use.number(0);
    if (use.step() != SQLITE_DONE) return failed("cannot grant a lease");
    return {};
  }));
  return lease;
}

Result<void> SqliteDirectory::keep_alive(LeaseId lease) {
  return in_transaction([&]() -> Result<void> {
    uint64_t seconds = 0;
    {
      SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kLease));
      Use use(prepared);
      use.bind(1, lease);
      const int step = use.step();
      if (step == SQLITE_DONE) return fail(Code::not_found, "directory: lease {} is over", lease);
      if (step != SQLITE_ROW) return failed("cannot read leases");
      seconds = use.number(0);
    }
    SNOW_ASSIGN(sqlite3_stmt * prepared, statement(kKeep));
    Use use(prepared);
    use.bind(1, lease);
    use.bind(2, static_cast<uint64_t>(clock_()) + seconds * kSecondNs);
    if (use.step() != SQLITE_DONE) return failed("cannot keep a lease");
    return {};
  });
}

Result<void> SqliteDirectory::revoke(LeaseId lease) {
  return in_transaction([&]() -> Result<void> {
    SNOW_ASSIGN(const bool lives, lease_lives(lease));
    if (!lives) return fail(Code::not_found, "directory: lease {} is over", lease);
    return end_lease(lease);
  });
}

}  // namespace snow
