// For tests: a clock that stands still until it is told, and a directory that fails on demand.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/test_folder.h"
#include "cluster/clock.h"
#include "cluster/members.h"
#include "cluster/sqlite_directory.h"

namespace snow {

// Throws for an error: the test fails and shows it.
inline void must(const Result<void>& done) {
  if (!done) throw std::runtime_error(done.error().message);
}

class ManualClock {
 public:
  void advance(double seconds) { now_ += static_cast<int64_t>(seconds * kSecondNs); }
  [[nodiscard]] Clock clock() {
    return [this] { return now_.load(); };
  }

 private:
  std::atomic<int64_t> now_{1'000 * kSecondNs};
};

// Passes on to another directory, unless it is told to fail.
class FaultyDirectory : public Directory {
 public:
  explicit FaultyDirectory(Directory& inner) : inner_(inner) {}

  std::atomic<bool> down{false};              // Code::unavailable, nothing is done
  std::atomic<int> lost_answers{0};           // so many commits are done and say Code::timed_out
  std::function<void()> before_each = [] {};  // e.g. time passes on the way there...
  std::function<void()> after_each = [] {};   // ... or on the way back

  Result<std::optional<Entry>> get(const std::string& key) override {
    return call<std::optional<Entry>>([&] { return inner_.get(key); });
  }
  Result<std::vector<Entry>> list(const std::string& prefix,
                                  std::vector<Damaged>* damaged = nullptr) override {
    return call<std::vector<Entry>>([&] { return inner_.list(prefix, damaged); });
  }
  Result<bool> commit(const Transaction& transaction) override {
    auto done = call<bool>([&] { return inner_.commit(transaction); });
    if (done && lost_answers > 0) {
      --lost_answers;
      return fail(Code::timed_out, "the answer got lost");
    }
    return done;
  }
  Result<LeaseId> grant(unsigned seconds) override {
    return call<LeaseId>([&] { return inner_.grant(seconds); });
  }
  Result<void> keep_alive(LeaseId lease) override {
    return call<void>([&] { return inner_.keep_alive(lease); });
  }
  Result<void> revoke(LeaseId lease) override {
    return call<void>([&] { return inner_.revoke(lease); });
  }

 private:
  template <class T>
  Result<T> call(const std::function<Result<T>()>& work) {
    before_each();
    if (down) return fail(Code::unavailable, "the directory is down");
    auto result = work();
    after_each();
    return result;
  }
  Directory& inner_;
};

// A SQLite directory over a manual clock, with three members.
struct TestCluster {
  static constexpr const char* kA = "h0000000000aa";
  static constexpr const char* kB = "h0000000000bb";
  static constexpr const char* kC = "h0000000000cc";

  TestFolder folder;
  ManualClock time;
  std::unique_ptr<SqliteDirectory> directory =
      std::move(SqliteDirectory::open(folder / "directory.db", time.clock()).value());

  TestCluster() {
    for (const char* id : {kA, kB, kC}) {
      Member member;
      member.id = id;
      member.name = std::string("host-") + id[12];
      member.address = "127.0.0.1:7000";
      must(add_member(*directory, member));
    }
  }
  void put(const std::string& key, const nlohmann::json& value, LeaseId lease = kNoLease) const {
    Transaction transaction;
    transaction.puts.push_back({key, value, lease});
    directory->commit(transaction).value();
  }
  // A record as the host's daemon would write it.
  void put_alive(const std::string& id, LeaseId lease = kNoLease) const {
    HostRecord host;
    host.id = id;
    host.name = "host-" + id.substr(12);
    host.instance = "instance-" + id;
    host.session = "session-" + id;
    host.lease = lease;
    put(host_key(id), to_json(host), lease);
  }
};

}  // namespace snow
