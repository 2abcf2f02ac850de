#include "vm/store.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/file.h"

namespace snow {
namespace {

constexpr int kSchema = 1;
constexpr const char* kSql[] = {
    "INSERT INTO record(kind, id, json) VALUES(?1, ?2, ?3) "
    "ON CONFLICT(kind, id) DO UPDATE SET json = excluded.json",
    "DELETE FROM record WHERE kind = ?1 AND id = ?2",
    "SELECT json FROM record WHERE kind = ?1 AND id = ?2",
    "SELECT id, json FROM record WHERE kind = ?1 ORDER BY id",
    "BEGIN IMMEDIATE",
    "COMMIT",
    "ROLLBACK",
};

// A prepared statement in use: bound and stepped, and reset whatever happens.
class Use {
 public:
  explicit Use(sqlite3_stmt* statement) : statement_(statement) {}
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  ~Use() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }
  void bind(int index, std::string_view text) {
    // Never a null pointer: SQLite would bind NULL for it.
    sqlite3_bind_text64(statement_, index, text.empty() ? "" : text.data(), text.size(),
                        SQLITE_STATIC, SQLITE_UTF8);
  }
  int step() { return sqlite3_step(statement_); }
  [[nodiscard]] std::string text(int column) const {
    const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    return bytes == nullptr
               ? std::string()
               : std::string(bytes, static_cast<size_t>(sqlite3_column_bytes(statement_, column)));
  }

 private:
  sqlite3_stmt* statement_;
};

Result<Fd> lock_folder(const std::string& state_dir) {
  const std::string path = state_dir + "/lock";
  Fd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return fail_errno(Code::host_failed, "{}: cannot open", path);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) < 0) {
    if (errno != EWOULDBLOCK) return fail_errno(Code::host_failed, "{}: cannot lock", path);
    char holder[32] = {};
    const ssize_t got = ::pread(lock.get(), holder, sizeof holder - 1, 0);
    const std::string_view pid(holder, got > 0 ? static_cast<size_t>(got) : 0);
    return fail(Code::exists,
                "state folder '{}' is in use by another daemon (pid {}); stop that one or choose "
                "another --state-dir",
                state_dir, pid.empty() ? "unknown" : pid);
  }
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(lock.get(), 0) < 0) {
    return fail_errno(Code::host_failed, "{}: cannot write", path);
  }
  SNOW_TRY(write_all_at(lock.get(), 0, std::as_bytes(std::span(pid)), path));
  return lock;
}

}  // namespace

Result<std::unique_ptr<Store>> Store::open(const std::string& state_dir) {
  SNOW_TRY(make_folders(state_dir, 0711));
  std::unique_ptr<Store> store(new Store(state_dir + "/record.db"));
  SNOW_ASSIGN(store->lock_, lock_folder(state_dir));
  SNOW_TRY(store->open_database());
  SNOW_TRY(store->check_schema());
  SNOW_TRY(store->prepare_statements());
  return store;
}

Store::~Store() {
  for (sqlite3_stmt* statement : statements_) sqlite3_finalize(statement);
  sqlite3_close(database_);
}

tl::unexpected<Error> Store::failed(std::string_view what) const {
  const int code = database_ == nullptr ? SQLITE_NOMEM : sqlite3_errcode(database_);
  const char* text = database_ == nullptr ? "out of memory" : sqlite3_errmsg(database_);
  if (code == SQLITE_NOTADB || code == SQLITE_CORRUPT) {
    return fail(Code::corrupt, "{}: {}: {}; move it away to start with an empty record", path_,
                what, text);
  }
  if (code == SQLITE_FULL) {
    return fail(Code::host_failed, "{}: {}: {}; free space on its file system", path_, what, text);
  }
  return fail(Code::host_failed, "{}: {}: {}", path_, what, text);
}

Result<void> Store::open_database() {
  // mutex_ serialises all use of the connection, so SQLite's own locks are off.
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  if (sqlite3_open_v2(path_.c_str(), &database_, flags, nullptr) != SQLITE_OK) {
    return failed("cannot open");
  }
  // The folder's lock keeps every other user away, so the file need not be locked for each
  // statement. (In WAL mode that also saves the shared-memory file.)
  constexpr const char* kPragmas =
      "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL";
  if (sqlite3_exec(database_, kPragmas, nullptr, nullptr, nullptr) != SQLITE_OK) {
    return failed("cannot open");
  }
  return {};
}

Result<void> Store::check_schema() {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(database_, "PRAGMA user_version", -1, &statement, nullptr) != SQLITE_OK ||
      sqlite3_step(statement) != SQLITE_ROW) {
    sqlite3_finalize(statement);
    return failed("cannot read the version");
  }
  const int version = sqlite3_column_int(statement, 0);
  sqlite3_finalize(statement);
  if (version == kSchema) return {};
  if (version > kSchema) {
    return fail(Code::invalid,
                "{}: written by a newer Thundersnow (record version {}, this one knows {}); start "
                "that version, or move the file away to start with an empty record",
                path_, version, kSchema);
  }
  const std::string create =
      "BEGIN; CREATE TABLE record(kind TEXT NOT NULL, id TEXT NOT NULL, json TEXT NOT NULL, "
      "PRIMARY KEY(kind, id)) WITHOUT ROWID; PRAGMA user_version = " +
      std::to_string(kSchema) + "; COMMIT";
  if (sqlite3_exec(database_, create.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) {
    return failed("cannot create the table");
  }
  return {};
}

Result<void> Store::prepare_statements() {
  for (int i = 0; i < kStatements; ++i) {
    if (sqlite3_prepare_v3(database_, kSql[i], -1, SQLITE_PREPARE_PERSISTENT, &statements_[i],
                           nullptr) != SQLITE_OK) {
      return failed("cannot prepare");
    }
  }
  return {};
}

Result<void> Store::put(std::string_view kind, std::string_view id, const nlohmann::json& value) {
  // Bytes that are not UTF-8 (a guest's words, perhaps) must not stop a record from being kept.
  const std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const std::lock_guard lock(mutex_);
  Use use(statements_[kPut]);
  use.bind(1, kind);
  use.bind(2, id);
  use.bind(3, text);
  if (use.step() != SQLITE_DONE) return failed("cannot record");
  return {};
}

Result<void> Store::remove(std::string_view kind, std::string_view id) {
  const std::lock_guard lock(mutex_);
  Use use(statements_[kRemove]);
  use.bind(1, kind);
  use.bind(2, id);
  if (use.step() != SQLITE_DONE) return failed("cannot remove");
  return {};
}

Result<std::optional<nlohmann::json>> Store::get(std::string_view kind, std::string_view id) {
  const std::lock_guard lock(mutex_);
  Use use(statements_[kGet]);
  use.bind(1, kind);
  use.bind(2, id);
  const int step = use.step();
  if (step == SQLITE_DONE) return std::nullopt;
  if (step != SQLITE_ROW) return failed("cannot read");
  nlohmann::json value = nlohmann::json::parse(use.text(0), nullptr, false);
  if (value.is_discarded()) {
    return fail(Code::corrupt, "{}: {} '{}' is not JSON", path_, kind, id);
  }
  return std::optional<nlohmann::json>(std::move(value));
}

Result<std::vector<std::pair<std::string, nlohmann::json>>> Store::list(std::string_view kind) {
  const std::lock_guard lock(mutex_);
  Use use(statements_[kList]);
  use.bind(1, kind);
  std::vector<std::pair<std::string, nlohmann::json>> all;
  int step = use.step();
  for (; step == SQLITE_ROW; step = use.step()) {
    nlohmann::json value = nlohmann::json::parse(use.text(1), nullptr, false);
    if (value.is_discarded()) {
      return fail(Code::corrupt, "{}: {} '{}' is not JSON", path_, kind, use.text(0));
    }
    all.emplace_back(use.text(0), std::move(value));
  }
  if (step != SQLITE_DONE) return failed("cannot list");
  return all;
}

Result<void> Store::run(Statement statement) {
  Use use(statements_[statement]);
  if (use.step() != SQLITE_DONE) return failed("transaction");
  return {};
}

Result<void> Store::transaction(const std::function<Result<void>()>& work) {
  const std::lock_guard lock(mutex_);
  if (depth_ > 0) return work();
  SNOW_TRY(run(kBegin));
  depth_ = 1;
  // Undoes the transaction also when `work` throws.
  struct Undo {
    Store& store;
    bool done = false;
    ~Undo() {
      store.depth_ = 0;
      // Some failures of SQLite (a full disk) have rolled back by themselves.
      if (!done && sqlite3_get_autocommit(store.database_) == 0) (void)store.run(kRollback);
    }
  } undo{*this};
  SNOW_TRY(work());
  SNOW_TRY(run(kCommit));
  undo.done = true;
  return {};
}

}  // namespace snow
