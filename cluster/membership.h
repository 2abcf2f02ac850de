// This host's registration in the cluster: "host/ID" with a lease, renewed every third of its
// length; and what the other hosts are, as of the last renewal.
//
// Fencing. Past the deadline of its lease, by its own clock, a host may not start, resume or thaw a
// VM: others may have given its VMs up. The deadline counts from before the request that made or
// renewed the lease was sent, so it is never later than the directory's. Only the clock decides:
// fenced() is right also when the directory hangs or the daemon was stopped. The way back is a new
// registration, and `back` compares what runs here with the directory before the host counts again.
//
// One thread of its own (start). All methods are thread-safe; fenced(), lease_left_ns(), hosts()
// and update_used() never wait for the directory.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cluster/clock.h"
#include "cluster/directory.h"
#include "cluster/values.h"

namespace snow {

// A member of the cluster as this host last saw it.
struct HostView {
  Member member;
  std::optional<HostRecord> live;  // it holds a lease
  // How long it has been seen without a lease. Grows only while we can see.
  int64_t gone_ns = 0;
  std::string problem;  // its record cannot be read; it is neither live nor gone
};

class Membership {
 public:
  struct Options {
    std::string id;       // of this host; a member already (add_member), which has its name
    std::string address;  // "IP:PORT" of our daemon
    std::string qemu;
    std::string accelerator;
    Resources capacity;
    nlohmann::json data = nlohmann::json::object();
    // Random text kept in the state folder that only one daemon can hold: the next daemon on this
    // folder and this boot takes the registration over from the one before.
    std::string session;
    std::string machine;          // empty: the kernel's boot id
    unsigned lease_seconds = 10;  // at least 3, or etcd's timeouts do not fit
    Clock clock = lease_clock_ns;
  };
  // Called from the membership's thread, or by who calls tick() or start(), with no lock held. They
  // may call anything here but start(), stop(), leave() and tick().
  struct Callbacks {
    // We are fenced from now on. May come late when the directory hangs; fenced() is exact.
    std::function<void(const std::string& why)> fenced = [](const std::string&) {};
    // We are registered anew, also the first time, and still fenced: end the VMs that are not ours
    // any more (Ownership::mine). Called again later if it fails; it may take as long as it needs.
    std::function<Result<void>()> back = []() -> Result<void> { return {}; };
  };

  Membership(Directory& directory, Options options, Callbacks callbacks);
  ~Membership();  // stop()
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;

  // Registers, then goes on in a thread. Code::exists: another daemon is registered under our id;
  // Code::denied: this host is not a member; Code::corrupt: our record is damaged; Code::invalid:
  // options. If only the directory is unreachable: fine, we begin fenced.
  Result<void> start();
  void stop();   // the lease stays until it ends: a daemon that restarts takes it over
  void leave();  // stop(), and the registration is gone at once

  [[nodiscard]] bool fenced() const { return lease_left_ns() <= 0; }
  // Until we are fenced if no renewal succeeds any more; 0 or less: we are.
  [[nodiscard]] int64_t lease_left_ns() const;
  // Why renewals or the registration fail at present; empty if they do not.
  [[nodiscard]] std::string trouble() const;
  [[nodiscard]] bool draining() const;
  [[nodiscard]] uint64_t generation() const;  // of our registration; 0 before the first

  // Members by id. Empty before the first contact.
  [[nodiscard]] std::vector<HostView> hosts() const;
  [[nodiscard]] std::vector<std::string> problems() const;  // records that could not be read
  [[nodiscard]] int64_t seen_ago_ns() const;  // since hosts() was last read; INT64_MAX: never
  Result<void> refresh();                     // reads the hosts now

  // Goes into the record with the next renewal.
  void update_used(const Resources& used);
  void wake();  // renews now instead of at the next third

  // Does what is due, returns after how many nanoseconds to call again. For tests that have no
  // thread; otherwise the thread's.
  int64_t tick();

 private:
  Result<void> check_options() const;
  struct Plan {
    Member member;
    std::vector<Transaction::Compare> compares;
    LeaseId replaced = kNoLease;
  };
  Result<void> register_host();
  Result<Plan> plan_registration();
  void note_superseded(const Error& error);
  Result<void> make_active();
  Result<void> renew();
  Result<void> publish(uint64_t own_revision);
  Result<uint64_t> look();  // refresh; the revision of our own record, 0 if it is not ours
  void lose(const std::string& why);
  void note(const Result<void>& result);
  [[nodiscard]] int64_t next_pause_ns() const;
  void run();
  HostRecord record() const;

  Directory& directory_;
  const Options options_;
  const Callbacks callbacks_;
  const std::string instance_;
  std::atomic<int64_t> deadline_;  // of the lease, if we are active

  std::mutex working_;  // held by tick(): one at a time
  // Only under working_:
  LeaseId lease_ = kNoLease;
  int64_t lease_deadline_ = 0;
  bool registered_ = false;        // "host/ID" is ours, as far as we know
  bool active_ = false;            // and `back` has succeeded
  bool superseded_ = false;        // for good: another daemon runs this host
  std::string name_;               // from the member's record
  std::optional<Code> last_code_;  // why the last tick failed, if it did
  uint64_t since_ms_ = 0;
  Resources published_;

  mutable std::mutex mutex_;  // never held while the directory is asked
  std::condition_variable changed_;
  Resources used_;
  std::string trouble_;
  uint64_t generation_ = 0;
  std::vector<HostView> hosts_;
  std::vector<std::string> problems_;
  std::map<std::string, int64_t> gone_since_;
  int64_t seen_at_ = INT64_MIN;
  bool woken_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace snow
