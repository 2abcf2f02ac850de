// What comes back: checked, kept, told to the core. Nothing is kept before it is verified: answers
// of the origin by their checksum (the connection says who it is), those of other hosts also by the
// hashes that the origin gave.
#include <algorithm>
#include <cstring>

#include "base/file.h"
#include "base/log.h"
#include "exchange/layer_state.h"
#include "exchange/page_body.h"

namespace snow::exchange {
namespace {

constexpr size_t kAsidePages = 1024;
constexpr Nanos kDiskFullPause = 5 * kSecond;

bool within_run(Run inner, Run outer) {
  return inner.first >= outer.first && inner.end() <= outer.end();
}

}  // namespace

Result<void> LayerState::take_part(uint8_t type, wire::Bytes payload, const Ask& ask, Waiter* self,
                                   Buffers& buffers, bool& last) {
  if (ask.host == origin_) origin_lacks_it_ = type == static_cast<uint8_t>(wire::Type::unknown);
  switch (static_cast<wire::Type>(type)) {
    case wire::Type::pages:
      return take_pages(payload, ask, self, buffers, last);
    case wire::Type::redirect:
      return take_redirect(payload, ask, self, last);
    case wire::Type::coming:
    case wire::Type::retry:
    case wire::Type::absent:
      return take_notice(static_cast<wire::Type>(type), payload, ask, self, last);
    case wire::Type::unknown: {
      const auto message = wire::parse_short(payload);
      if (!message) return wrong(ask, self, message.error());
      const std::lock_guard lock(mutex_);
      actions_.clear();
      core_.unknown(ask.id, monotonic_ns(), actions_);
      act(actions_, self);
      last = true;
      return {};
    }
    default:
      return wrong(ask, self, {Code::corrupt, fmt::format("an answer of unknown type {}", type)});
  }
}

Result<void> LayerState::wrong(const Ask& ask, Waiter* self, Error why) {
  log_warn("image {}: host '{}' gave a wrong answer for {} pages from {} on: {}",
           to_text(descriptor_.id), shared_->hosts.name(ask.host), ask.run.count, ask.run.first,
           why.message);
  const std::lock_guard lock(mutex_);
  actions_.clear();
  core_.wrong(ask.id, ask.run, monotonic_ns(), actions_);
  act(actions_, self);
  return tl::unexpected(std::move(why));
}

Result<void> LayerState::take_pages(wire::Bytes payload, const Ask& ask, Waiter* self,
                                    Buffers& buffers, bool& last) {
  const auto pages = wire::parse_pages(payload, descriptor_.id);
  if (!pages) return wrong(ask, self, pages.error());
  if (pages->tag != static_cast<uint16_t>(ask.id) || !within_run(pages->run, ask.run)) {
    return wrong(ask, self, {Code::corrupt, "PAGES: not what was asked for"});
  }
  const auto raw = unpack(*pages, buffers.scratch);
  if (!raw) return wrong(ask, self, raw.error());
  const bool from_origin = ask.host == origin_;
  if (!from_origin) {
    const auto checked = check_hashes(pages->run, pages->zeros, *raw);
    if (!checked && checked.error().code != Code::exists) return wrong(ask, self, checked.error());
    if (!checked) {  // late, and nobody needs it
      last = pages->last;
      return {};
    }
  }
  keep_pages(pages->run, pages->zeros, *raw);
  if (self != nullptr) fill_reader(*self, pages->run, pages->zeros, *raw);
  {
    const std::lock_guard lock(mutex_);
    Traffic& traffic = (from_origin ? from_origin_ : from_peers_)[static_cast<size_t>(ask.lane)];
    traffic.bytes += payload.size();
    traffic.pages += wire::pages_in_body(*pages);
    const Nanos now = monotonic_ns();
    actions_.clear();
    visit_stretches(pages->run, pages->zeros, *raw, [&](Run run, wire::Bytes bytes) {
      bytes.empty() ? core_.zeros(run, now, actions_) : core_.pages(ask.id, run, now, actions_);
    });
    if (pages->last) core_.finished(ask.id, now, actions_);
    note_progress();
    act(actions_, self);
  }
  if (self == nullptr) {
    visit_stretches(pages->run, pages->zeros, *raw,
                    [&](Run run, wire::Bytes bytes) { hand_out(run, bytes); });
  }
  last = pages->last;
  return {};
}

// Straight into what its thread reads, without a way through the cache file.
void LayerState::fill_reader(Waiter& waiter, Run run, uint64_t zeros, wire::Bytes raw) {
  visit_stretches(run, zeros, raw, [&](Run part, wire::Bytes bytes) {
    for (uint32_t i = 0; i < part.count; ++i) {
      const uint32_t page = part.first + i;
      if (!waiter.run.contains(page)) continue;
      const uint64_t begin = std::max(offset_of(page), waiter.offset);
      const uint64_t end = std::min(offset_of(page) + kPageBytes,
                                    waiter.offset + static_cast<uint64_t>(waiter.into.size()));
      const auto to = waiter.into.subspan(begin - waiter.offset, end - begin);
      if (bytes.empty()) {
        std::memset(to.data(), 0, to.size());
      } else {
        std::memcpy(to.data(), bytes.data() + size_t{i} * kPageBytes + (begin - offset_of(page)),
                    to.size());
      }
      waiter.filled |= uint64_t{1} << (page - waiter.run.first);
    }
  });
}

Result<void> LayerState::check_hashes(Run run, uint64_t zeros, wire::Bytes raw) {
  std::array<wire::PageHash, kMaxRunPages> expected{};
  {
    const std::lock_guard lock(mutex_);
    for (uint32_t i = 0; i < run.count; ++i) {
      const auto at = hashes_.find(run.first + i);
      if (at != hashes_.end()) {
        expected[i] = at->second;
      } else if (!core_.present(run.first + i)) {
        return fail(Code::corrupt, "page {}: the origin gave no hash for it", run.first + i);
      } else {
        return fail(Code::exists, "page {}: it came from elsewhere", run.first + i);
      }
    }
  }
  Result<void> result;
  visit_stretches(run, zeros, raw, [&](Run part, wire::Bytes bytes) {
    for (uint32_t i = 0; i < part.count && result; ++i) {
      const wire::PageHash hash =
          bytes.empty() ? zero_page_hash() : page_hash(bytes.data() + size_t{i} * kPageBytes);
      if (hash != expected[part.first - run.first + i]) {
        result = fail(Code::corrupt, "page {}: not the origin's bytes", part.first + i);
      }
    }
  });
  return result;
}

void LayerState::keep_pages(Run run, uint64_t zeros, wire::Bytes raw) {
  visit_stretches(run, zeros, raw, [&](Run part, wire::Bytes bytes) {
    if (bytes.empty()) return cache_->set_zero(part.first, part.count);
    const auto written = cache_->write(part.first, bytes);
    if (written) return;
    const std::lock_guard lock(mutex_);
    const Nanos now = monotonic_ns();
    if (now >= disk_full_until_) {
      log_warn("{}; pages are given to who reads them, but not kept; make room",
               written.error().message);
    }
    disk_full_until_ = now + kDiskFullPause;
    unkept_pages_ += part.count;
    keep_aside(part, bytes);
    apply_fill();
    changed_.notify_all();
  });
}

// Where those who wait for these pages find them for a while.
void LayerState::keep_aside(Run run, wire::Bytes raw) {
  for (uint32_t i = 0; i < run.count; ++i) {
    const auto bytes = raw.subspan(size_t{i} * kPageBytes, kPageBytes);
    const auto [at, added] = aside_.try_emplace(run.first + i, bytes.begin(), bytes.end());
    if (added) aside_order_.push_back(run.first + i);
  }
  while (aside_order_.size() > kAsidePages) {
    const uint32_t page = aside_order_.front();
    aside_order_.pop_front();
    aside_.erase(page);
    if (!cache_->has(page)) core_.drop({page, 1});
  }
}

void LayerState::forget_aside() {
  for (const uint32_t page : aside_order_) {
    if (!cache_->has(page)) core_.drop({page, 1});
  }
  aside_.clear();
  aside_order_.clear();
}

void LayerState::hand_out(Run run, wire::Bytes raw) {
  if (raw.empty()) return;
  std::shared_ptr<const RemoteLayer::OnPages> callback;
  {
    const std::lock_guard lock(mutex_);
    callback = on_pages_;
  }
  if (!callback) return;
  const uint64_t offset = offset_of(run.first);
  (*callback)(offset, raw.first(std::min<uint64_t>(raw.size(), descriptor_.size_bytes - offset)));
}

void LayerState::note_progress() {
  if (complete_ || !cache_->complete()) return;
  complete_ = true;
  hashes_.clear();
  control_due_ = 0;  // tells who wants to know
  changed_.notify_all();
}

Result<void> LayerState::take_redirect(wire::Bytes payload, const Ask& ask, Waiter* self,
                                       bool& last) {
  const auto redirect = wire::parse_redirect(payload);
  if (!redirect) return wrong(ask, self, redirect.error());
  if (redirect->tag != static_cast<uint16_t>(ask.id) || !within_run(redirect->run, ask.run) ||
      ask.host != origin_) {
    return wrong(ask, self, {Code::corrupt, "REDIRECT: not by the origin, or not of this run"});
  }
  std::array<HostNumber, wire::kMaxHosts> hosts{};
  size_t count = 0;
  for (size_t i = 0; i < redirect->host_count; ++i) {
    const HostNumber host = shared_->hosts.number(redirect->hosts[i]);
    if (host != kNoHost && host != shared_->self) hosts[count++] = host;
  }
  const std::lock_guard lock(mutex_);
  for (uint32_t i = 0; i < redirect->run.count; ++i) {
    const uint32_t page = redirect->run.first + i;
    if (!core_.present(page)) hashes_.insert_or_assign(page, redirect->hashes[i]);
  }
  const Nanos now = monotonic_ns();
  actions_.clear();
  core_.redirect(ask.id, redirect->run, std::span(hosts).first(count), redirect->no_wait, now,
                 actions_);
  if (redirect->last) core_.finished(ask.id, now, actions_);
  act(actions_, self);
  last = redirect->last;
  return {};
}

Result<void> LayerState::take_notice(wire::Type type, wire::Bytes payload, const Ask& ask,
                                     Waiter* self, bool& last) {
  const auto notice = wire::parse_notice(payload);
  if (!notice) return wrong(ask, self, notice.error());
  if (notice->tag != static_cast<uint16_t>(ask.id) || !within_run(notice->run, ask.run)) {
    return wrong(ask, self, {Code::corrupt, "not what was asked for"});
  }
  const Nanos wait = Nanos{notice->wait_us} * kMicrosecond;
  const std::lock_guard lock(mutex_);
  const Nanos now = monotonic_ns();
  actions_.clear();
  switch (type) {
    case wire::Type::coming:
      core_.coming(ask.id, notice->run, wait, now, actions_);
      break;
    case wire::Type::retry:
      core_.retry(ask.id, notice->run, wait, now, actions_);
      break;
    default:
      core_.absent(ask.id, notice->run, now, actions_);
  }
  if (notice->last) core_.finished(ask.id, now, actions_);
  act(actions_, self);
  last = notice->last;
  return {};
}

}  // namespace snow::exchange
