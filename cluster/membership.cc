#include "cluster/membership.h"

#include "base/file.h"
#include "base/log.h"

namespace snow {
namespace {

constexpr unsigned kLeastLeaseSeconds = 3;
constexpr int64_t kNever = INT64_MIN;
constexpr int64_t kLeastPauseNs = kSecondNs / 20;
constexpr size_t kMaxTextBytes = 128;

std::string boot_id() {
  auto text = read_file("/proc/sys/kernel/random/boot_id", 100).value_or(std::string("unknown"));
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

Membership::Options complete(Membership::Options options) {
  if (options.machine.empty()) options.machine = boot_id();
  return options;
}

}  // namespace

Membership::Membership(Directory& directory, Options options, Callbacks callbacks)
    : directory_(directory),
      options_(complete(std::move(options))),
      callbacks_(std::move(callbacks)),
      instance_(random_hex(8)),
      deadline_(kNever) {}

Membership::~Membership() { stop(); }

Result<void> Membership::check_options() const {
  SNOW_TRY(check_host_id(options_.id));
  SNOW_TRY(check_data("data", options_.data));
  for (const auto& text : {options_.address, options_.qemu, options_.accelerator, options_.session,
                           options_.machine}) {
    if (text.size() > kMaxTextBytes) {
      return fail(Code::invalid, "host '{}': '{}...' has {} bytes; at most {} are allowed",
                  options_.id, text.substr(0, 40), text.size(), kMaxTextBytes);
    }
  }
  if (options_.session.empty()) return fail(Code::invalid, "host '{}': no session", options_.id);
  if (options_.lease_seconds < kLeastLeaseSeconds) {
    return fail(Code::invalid, "a lease of {} seconds is too short; at least {}",
                options_.lease_seconds, kLeastLeaseSeconds);
  }
  return check_lease_seconds(options_.lease_seconds);
}

Result<void> Membership::start() {
  SNOW_TRY(check_options());
  (void)tick();
  {
    const std::lock_guard working(working_);
    const Code code = last_code_.value_or(Code::unavailable);
    if (!registered_ && (code == Code::exists || code == Code::denied || code == Code::corrupt ||
                         code == Code::invalid)) {
      return tl::unexpected<Error>(Error{code, trouble()});
    }
  }
  const std::lock_guard lock(mutex_);
  stopping_ = false;
  thread_ = std::thread([this] { run(); });
  return {};
}

void Membership::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Membership::leave() {
  stop();
  const std::lock_guard working(working_);
  deadline_.store(kNever);
  active_ = false;
  if (registered_) (void)directory_.revoke(lease_);  // or it ends by itself
  registered_ = false;
}

void Membership::run() {
  int64_t pause_ns = 0;
  {
    const std::lock_guard working(working_);
    pause_ns = next_pause_ns();
  }
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::nanoseconds(pause_ns),
                        [&] { return stopping_ || woken_; });
      if (stopping_) return;
      woken_ = false;
    }
    pause_ns = tick();
  }
}

int64_t Membership::tick() {
  const std::lock_guard working(working_);
  if (active_ && fenced()) {
    const std::string reason = trouble();
    lose(reason.empty() ? "the lease was not renewed in time" : reason);
  }
  Result<void> done;
  if (registered_) done = renew();
  // What was lost is tried again at once: the lease that is over does no good.
  if (done && !registered_ && !superseded_) done = register_host();
  if (done && registered_ && !active_) done = make_active();
  if (active_ && fenced()) lose(done ? "the lease ended" : done.error().message);
  note(done);
  return next_pause_ns();
}

int64_t Membership::next_pause_ns() const {
  const int64_t lease_ns = options_.lease_seconds * kSecondNs;
  if (superseded_) return lease_ns;
  const bool fine = active_ && !last_code_;
  int64_t pause_ns = fine ? lease_ns / 3 : lease_ns / 10;
  if (active_) pause_ns = std::min(pause_ns, lease_left_ns());
  return std::max(pause_ns, kLeastPauseNs);
}

void Membership::lose(const std::string& why) {
  const bool was_active = active_;
  active_ = false;
  registered_ = false;
  deadline_.store(kNever);
  if (!was_active) return;
  log_warn("host '{}' is fenced: {}; its VMs go on, it starts none", options_.id, why);
  callbacks_.fenced(why);
}

void Membership::note(const Result<void>& result) {
  if (superseded_) return;  // its words stay
  const std::string text = result ? std::string() : result.error().message;
  if (result) {
    last_code_.reset();
  } else {
    last_code_ = result.error().code;
  }
  const std::lock_guard lock(mutex_);
  if (!text.empty() && text != trouble_) log_warn("cluster: {}", text);
  if (text.empty() && !trouble_.empty()) log_info("cluster: the directory answers again");
  trouble_ = text;
}

Result<void> Membership::renew() {
  const int64_t asked = options_.clock();
  if (auto kept = directory_.keep_alive(lease_); !kept) {
    if (kept.error().code != Code::not_found) return kept;
    lose("the lease is gone from the directory");
    return {};
  }
  if (active_ && fenced()) {
    lose("the lease was renewed too late");
    return {};
  }
  lease_deadline_ = asked + options_.lease_seconds * kSecondNs;
  if (active_) deadline_.store(lease_deadline_);
  SNOW_ASSIGN(const uint64_t revision, look());
  if (revision == 0) {
    lose("the registration was removed or replaced in the directory");
    return {};
  }
  return publish(revision);
}

// A change of what is used goes along with the renewal.
Result<void> Membership::publish(uint64_t own_revision) {
  const HostRecord host = record();
  if (host.used == published_) return {};
  Transaction transaction;
  transaction.compares.push_back({host_key(options_.id), own_revision});
  transaction.puts.push_back({host_key(options_.id), to_json(host), lease_});
  SNOW_ASSIGN(const bool done, directory_.commit(transaction));
  if (done) published_ = host.used;  // if not, the next look tells why
  return {};
}

HostRecord Membership::record() const {
  HostRecord host;
  host.id = options_.id;
  host.name = name_;
  host.address = options_.address;
  host.session = options_.session;
  host.instance = instance_;
  host.machine = options_.machine;
  host.lease = lease_;
  host.since_ms = since_ms_;
  host.capacity = options_.capacity;
  host.qemu = options_.qemu;
  host.accelerator = options_.accelerator;
  host.data = options_.data;
  const std::lock_guard lock(mutex_);
  host.generation = generation_;
  host.used = used_;
  return host;
}

Result<void> Membership::make_active() {
  if (auto done = callbacks_.back(); !done) {
    return within("host is fenced: its VMs could not be compared with the directory", done.error());
  }
  if (options_.clock() >= lease_deadline_) {
    // That took long. If the lease still is there, nobody can have taken anything from us.
    const int64_t asked = options_.clock();
    if (auto kept = directory_.keep_alive(lease_); !kept) {
      if (kept.error().code == Code::not_found) registered_ = false;
      return kept;
    }
    lease_deadline_ = asked + options_.lease_seconds * kSecondNs;
  }
  active_ = true;
  deadline_.store(lease_deadline_);
  log_info("host '{}' is registered in the cluster, generation {}", options_.id, generation());
  return {};
}

int64_t Membership::lease_left_ns() const {
  const int64_t deadline = deadline_.load();
  return deadline == kNever ? 0 : deadline - options_.clock();
}

std::string Membership::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

uint64_t Membership::generation() const {
  const std::lock_guard lock(mutex_);
  return generation_;
}

void Membership::update_used(const Resources& used) {
  const std::lock_guard lock(mutex_);
  used_ = used;
}

void Membership::wake() {
  {
    const std::lock_guard lock(mutex_);
    woken_ = true;
  }
  changed_.notify_all();
}

}  // namespace snow
