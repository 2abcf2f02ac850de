#include "exchange/layer_state.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"
#include "exchange/page_body.h"

namespace snow::exchange {

LayerState::LayerState(std::shared_ptr<Shared> shared, Descriptor descriptor,
                       std::unique_ptr<CacheFile> cache)
    : shared_(std::move(shared)),
      descriptor_(std::move(descriptor)),
      path_(cache->path()),
      origin_(shared_->hosts.number(descriptor_.origin)),
      cache_holder_(std::move(cache)),
      cache_(cache_holder_.get()),
      core_(pages_of(descriptor_.size_bytes), origin_, ReceiverOptions{}) {}

void LayerState::start(bool asked_before) {
  const std::lock_guard lock(mutex_);
  if (asked_before) core_.set_asked_before();
  const Bitmap& present = cache_->present();
  const uint32_t pages = cache_->pages();
  for (uint32_t at = present.next_set(0, pages); at < pages;) {
    const uint32_t end = present.next_clear(at, pages);
    core_.set_present({at, end - at});
    at = present.next_set(end, pages);
  }
  for (const Run& run : descriptor_.hot) core_.set_hot(run);
  complete_ = cache_->complete();
  map_done_ = complete_;
  shared_->alarm.by(0);
}

void LayerState::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  for (Waiter* waiter : waiters_) {
    if (waiter->connection != nullptr) waiter->connection->interrupt();
    waiter->wake.notify_one();
  }
  for (peer::Connection* connection : in_use_) connection->interrupt();
  changed_.notify_all();
}

void LayerState::close() {
  stop();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return active_ == 0; });
  const bool kept = cache_->kept();
  cache_->close();
  if (!kept) ::unlink((path_ + ".json").c_str());
  closed_ = true;
}

bool LayerState::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

void LayerState::keep() { cache_->keep(); }

void LayerState::on_pages(RemoteLayer::OnPages callback) {
  auto shared = std::make_shared<const RemoteLayer::OnPages>(std::move(callback));
  const std::lock_guard lock(mutex_);
  on_pages_ = *shared ? std::move(shared) : nullptr;
}

void LayerState::on_complete(std::function<void()> callback) {
  {
    const std::lock_guard lock(mutex_);
    if (!complete_) {
      on_complete_.push_back(std::move(callback));
      return;
    }
  }
  callback();
}

void LayerState::fill(uint64_t bytes_per_second) {
  const std::lock_guard lock(mutex_);
  fill_ = true;
  fill_rate_ = bytes_per_second;
  apply_fill();
}

void LayerState::pause_fill() {
  const std::lock_guard lock(mutex_);
  fill_ = false;
  apply_fill();
}

Result<void> LayerState::detach(int timeout_ms) {
  {
    const std::lock_guard lock(mutex_);
    fill_ = true;
    fill_rate_ = 0;
    disk_full_until_ = 0;  // there may be room by now: that is tried, and not believed
    forget_aside();
    apply_fill();
  }
  std::unique_lock lock(mutex_);
  const auto over = [this] { return complete_ || stopping_ || disk_full_until_ != 0; };
  if (timeout_ms < 0) {
    changed_.wait(lock, over);
  } else if (!changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), over)) {
    return fail(Code::timed_out, "layer {}: {} of {} pages came within {} ms; it goes on", path_,
                cache_->present_pages(), cache_->pages(), timeout_ms);
  }
  if (complete_) return {};
  if (stopping_) return fail(Code::unavailable, "layer {}: the exchange was stopped", path_);
  return fail(Code::host_failed, "layer {}: the disk does not take it; make room", path_);
}

std::string LayerState::waiting_for(Nanos at_least) const {
  const std::lock_guard lock(mutex_);
  const Nanos now = monotonic_ns();
  for (const Waiting& waiting : core_.waiting()) {
    if (now - waiting.since < at_least) continue;
    return shared_->hosts.name(waiting.host == kNoHost ? origin_ : waiting.host);
  }
  return {};
}

void LayerState::host_down(const std::string& host) {
  const std::lock_guard lock(mutex_);
  actions_.clear();
  core_.host_down(shared_->hosts.number(host), monotonic_ns(), actions_);
  act(actions_, nullptr);
}

void LayerState::host_up(const std::string& host) {
  const std::lock_guard lock(mutex_);
  actions_.clear();
  core_.host_up(shared_->hosts.number(host), monotonic_ns(), actions_);
  control_due_ = 0;
  act(actions_, nullptr);
}

void LayerState::unasked(Run run, uint64_t zeros, wire::Bytes raw) {
  const Active active(*this);
  if (!active) return;
  keep_pages(run, zeros, raw);
  {
    const std::lock_guard lock(mutex_);
    from_multicast_.bytes += raw.size();
    from_multicast_.pages += raw.size() / kPageBytes;
    const Nanos now = monotonic_ns();
    actions_.clear();
    visit_stretches(run, zeros, raw, [&](Run part, wire::Bytes bytes) {
      bytes.empty() ? core_.zeros(part, now, actions_) : core_.unasked(part, now, actions_);
    });
    note_progress();
    act(actions_, nullptr);
  }
  visit_stretches(run, zeros, raw, [&](Run part, wire::Bytes bytes) { hand_out(part, bytes); });
}

void LayerState::listen(bool on) {
  const std::lock_guard lock(mutex_);
  listening_ = on;
  control_due_ = 0;
  shared_->alarm.by(0);
}

void LayerState::count_packets(uint64_t got, uint64_t missed) {
  const std::lock_guard lock(mutex_);
  packets_got_ += got;
  packets_missed_ += missed;
}

nlohmann::json LayerState::statistics() const {
  const std::lock_guard lock(mutex_);
  const auto traffic = [](const Traffic(&lanes)[3]) {
    nlohmann::json json;
    const char* names[] = {"demand", "hot", "background"};
    for (size_t i = 0; i < 3; ++i) {
      json[names[i]] = {{"bytes", lanes[i].bytes}, {"pages", lanes[i].pages}};
    }
    return json;
  };
  const ReceiverCounters& counters = core_.counters();
  nlohmann::json waiting = nlohmann::json::array();
  const Nanos now = monotonic_ns();
  for (const Waiting& entry : core_.waiting()) {
    if (waiting.size() >= 64) break;
    waiting.push_back(
        {{"page", entry.run.first},
         {"pages", entry.run.count},
         {"for_ms", (now - entry.since) / kMillisecond},
         {"host", shared_->hosts.name(entry.host == kNoHost ? origin_ : entry.host)}});
  }
  return {{"id", to_text(descriptor_.id)},
          {"origin", descriptor_.origin},
          {"path", path_},
          {"pages", cache_->pages()},
          {"pages_present", closed_ ? 0 : cache_->present_pages()},
          {"complete", complete_.load()},
          {"origin_lacks_it", origin_lacks_it_.load()},
          {"filling", fill_},
          {"disk_full", disk_full_until_ != 0},
          {"pages_not_kept", unkept_pages_},
          {"from_origin", traffic(from_origin_)},
          {"from_peers", traffic(from_peers_)},
          {"from_multicast", {{"bytes", from_multicast_.bytes}, {"pages", from_multicast_.pages}}},
          {"to_peers", {{"bytes", to_peers_.bytes}, {"pages", to_peers_.pages}}},
          {"demands", counters.demands},
          {"demands_that_waited", counters.demands_waited},
          {"hedges", counters.hedges},
          {"redirects", counters.redirects},
          {"retries", counters.retries},
          {"failures", counters.failures},
          {"wrong_answers", counters.wrong},
          {"duplicate_pages", counters.duplicates},
          {"multicast_missed", counters.coming_missed},
          {"demand_p50_us", core_.demand_latency().quantile(0.5) / kMicrosecond},
          {"demand_p99_us", core_.demand_latency().quantile(0.99) / kMicrosecond},
          {"listening", listening_.load()},
          {"waiting", waiting}};
}

}  // namespace snow::exchange
