// What a layer says to its origin beside asking for pages: which pages are zeros, that it listens
// to the multicast group and how that arrives, that it has everything. One job at a time, tried
// again with pauses.
#include <algorithm>

#include "base/file.h"
#include "base/log.h"
#include "exchange/bytes.h"
#include "exchange/layer_state.h"

namespace snow::exchange {
namespace {

constexpr Nanos kPauseLeast = 250 * kMillisecond;
constexpr Nanos kPauseMost = 5 * kSecond;
constexpr Nanos kReportEvery = 100 * kMillisecond;

}  // namespace

Nanos LayerState::tick(Nanos now) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return kNever;
  if (disk_full_until_ != 0 && now >= disk_full_until_) {
    disk_full_until_ = 0;
    forget_aside();
    apply_fill();
  }
  if (core_.next_tick() <= now) {
    actions_.clear();
    core_.tick(now, actions_);
    act(actions_, nullptr);
  }
  if (control_due_ <= now && !control_busy_) {
    control_busy_ = true;
    control_due_ = kNever;
    shared_->demand.submit([layer = shared_from_this()] {
      if (const Active active(*layer); active) layer->control();
    });
  }
  Nanos next = std::min(core_.next_tick(), control_busy_ ? kNever : control_due_);
  if (disk_full_until_ != 0) next = std::min(next, disk_full_until_);
  return next;
}

void LayerState::control() {
  Result<void> done;
  bool is_complete = false;
  {
    const std::lock_guard lock(mutex_);
    is_complete = complete_;
  }
  if (is_complete) completed();
  if (done && !map_known()) done = fetch_map();
  if (done) done = announce();
  const std::lock_guard lock(mutex_);
  control_busy_ = false;
  const Nanos now = monotonic_ns();
  if (done) {
    control_pause_ = 0;
    if (listening_ || !reports_.empty()) control_due_ = std::min(control_due_, now + kReportEvery);
  } else {
    log_debug("image {}: {}", to_text(descriptor_.id), done.error().message);
    control_pause_ = std::clamp(2 * control_pause_, kPauseLeast, kPauseMost);
    control_due_ = std::min(control_due_, now + control_pause_);
  }
  shared_->alarm.by(control_due_);
}

bool LayerState::map_known() const {
  const std::lock_guard lock(mutex_);
  return map_done_ || complete_;
}

Result<void> LayerState::fetch_map() {
  const uint32_t pages = cache_->pages();
  for (uint32_t first = 0; first < pages; first += wire::kMaxMapPages) {
    SNOW_TRY(fetch_map_part({first, std::min(wire::kMaxMapPages, pages - first)}));
  }
  const std::lock_guard lock(mutex_);
  map_done_ = true;
  apply_fill();
  return {};
}

Result<void> LayerState::fetch_map_part(Run run) {
  wire::Buffer request, answer, bits;
  wire::encode(wire::About{0, descriptor_.id, run}, request);
  SNOW_ASSIGN(const uint8_t type, call_origin(wire::Type::map, request, answer));
  if (type != static_cast<uint8_t>(wire::Type::zeros)) {
    return fail(Code::not_found, "host '{}' does not know it", descriptor_.origin);
  }
  SNOW_ASSIGN(const wire::Zeros zeros, wire::parse_zeros(answer, bits));
  if (zeros.run != run) return fail(Code::corrupt, "ZEROS: not what was asked for");
  bits.resize((bits.size() + 7) / 8 * 8);
  std::vector<uint64_t> words(bits.size() / 8);
  std::memcpy(words.data(), bits.data(), bits.size());
  const Bitmap map(words.data(), run.count);
  for (uint32_t at = map.next_set(0, run.count); at < run.count;) {
    const uint32_t end = map.next_clear(at, run.count);
    cache_->set_zero(run.first + at, end - at);
    {
      const std::lock_guard lock(mutex_);
      actions_.clear();
      core_.zeros({run.first + at, end - at}, monotonic_ns(), actions_);
      note_progress();
      act(actions_, nullptr);
    }
    at = map.next_set(end, run.count);
  }
  return {};
}

// Subscription, loss and bad hosts, and that all is here. Each is told again until it was heard.
Result<void> LayerState::announce() {
  wire::Buffer request, answer;
  wire::Report report;
  bool tell_have = false;
  bool listen = false;
  {
    const std::lock_guard lock(mutex_);
    report.hosts.swap(reports_);
    report.got = std::exchange(packets_got_, 0);
    report.missed = std::exchange(packets_missed_, 0);
    tell_have = complete_ && !have_told_;
    listen = listening_ && !complete_;
  }
  if (listen != subscribed_) {
    wire::encode(wire::About{0, descriptor_.id, {}}, request);
    SNOW_ASSIGN(
        const uint8_t type,
        call_origin(listen ? wire::Type::subscribe : wire::Type::unsubscribe, request, answer));
    SNOW_TRY(heed(type, answer));
    subscribed_ = listen;
  }
  if (report.got + report.missed > 0 || !report.hosts.empty()) {
    report.image = descriptor_.id;
    wire::encode(report, request);
    SNOW_ASSIGN(const uint8_t type, call_origin(wire::Type::report, request, answer));
    SNOW_TRY(heed(type, answer));
  }
  if (tell_have) {
    wire::encode(wire::About{0, descriptor_.id, {0, cache_->pages()}}, request);
    SNOW_ASSIGN(const uint8_t type, call_origin(wire::Type::have, request, answer));
    (void)type;  // one that has withdrawn the image need not know
    const std::lock_guard lock(mutex_);
    have_told_ = true;
  }
  return {};
}

// OK may say that multicast is no use here.
Result<void> LayerState::heed(uint8_t type, const wire::Buffer& answer) {
  if (type != static_cast<uint8_t>(wire::Type::ok)) {
    return fail(Code::not_found, "host '{}' does not know it", descriptor_.origin);
  }
  SNOW_ASSIGN(const wire::Short ok, wire::parse_short(answer));
  if (ok.leave) {
    log_info("image {}: multicast arrives badly; unicast from now on", to_text(descriptor_.id));
    listening_ = false;
    subscribed_ = false;
  }
  return {};
}

Result<uint8_t> LayerState::call_origin(wire::Type type, const wire::Buffer& request,
                                        wire::Buffer& answer) {
  const int timeout_ms = shared_->options.request_timeout_ms;
  for (;;) {
    auto lease = shared_->connections.idle(origin_, false);
    const bool reused = lease.has_value();
    if (!lease) {
      SNOW_ASSIGN(lease, shared_->connections.fresh(descriptor_.origin, false, timeout_ms));
    }
    Result<uint8_t> got = fail(Code::unavailable, "not sent");
    {
      const InUse in_use(*this, **lease, nullptr);
      const auto sent = (*lease)->send(static_cast<uint8_t>(type), request, timeout_ms);
      got = sent ? (*lease)->receive_into(answer, timeout_ms) : tl::unexpected(sent.error());
    }
    if (got) {
      shared_->connections.give_back(origin_, false, std::move(*lease));
      return got;
    }
    lease->drop();
    if (!reused || got.error().code != Code::unavailable || shared_->stopping) return got;
  }
}

void LayerState::completed() {
  std::vector<std::function<void()>> callbacks;
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    callbacks.swap(on_complete_);
    first = !std::exchange(sealed_, true);
  }
  if (first) {
    // It counts after a reboot too; if it cannot be done, it is fetched again then.
    if (auto sealed = cache_->seal(); !sealed) log_debug("{}", sealed.error().message);
  }
  for (const auto& callback : callbacks) callback();
}

}  // namespace snow::exchange
