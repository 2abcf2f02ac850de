#include "exchange/offer_state.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"

namespace snow::exchange {
namespace {

constexpr Nanos kLostRetry = kSecond;
constexpr uint32_t kWorkingSetGap = 2;  // pages; fetching them costs less than another ask

OriginOptions core_options(const Shared& shared, const Descriptor& descriptor) {
  OriginOptions options;
  std::memcpy(&options.seed, descriptor.id.data(), sizeof options.seed);
  const MulticastSettings& settings = shared.options.multicast;
  options.redirects = shared.options.relay;
  options.multicast.on = descriptor.multicast.has_value();
  options.multicast.hearing_least = settings.hosts_least;
  options.multicast.rate_start = settings.bytes_per_second;
  options.multicast.rate_most = settings.most_bytes_per_second;
  options.multicast.rate_least = std::min(options.multicast.rate_least, settings.bytes_per_second);
  return options;
}

}  // namespace

OfferState::OfferState(std::shared_ptr<Shared> shared, Descriptor descriptor,
                       std::shared_ptr<Content> content, Offer offer)
    : shared_(std::move(shared)),
      descriptor_(std::move(descriptor)),
      content_(std::move(content)),
      pages_(pages_of(descriptor_.size_bytes)),
      multicasts_(descriptor_.multicast.has_value()),
      data_ranges_(std::move(offer.data_ranges)),
      core_(pages_, core_options(*shared_, descriptor_)) {}

Result<void> OfferState::read(Run run, std::span<std::byte> into) {
  const uint64_t begin = offset_of(run.first);
  const uint64_t size = std::min<uint64_t>(into.size(), descriptor_.size_bytes - begin);
  std::memset(into.data() + size, 0, into.size() - size);
  return content_->read(begin, into.first(size));
}

Result<void> OfferState::fetch(const wire::Fetch& fetch, Responder& responder) {
  if (fetch.run.end() > pages_) {
    return fail(Code::corrupt, "FETCH: pages {}+{} of {}", fetch.run.first, fetch.run.count,
                pages_);
  }
  thread_local std::vector<Decision> decisions;
  decisions.clear();
  Fetch asked;
  asked.host = responder.host();
  asked.run = fetch.run;
  asked.lane = fetch.lane;
  asked.no_redirect = fetch.no_redirect;
  asked.again = fetch.again;
  {
    const std::lock_guard lock(mutex_);
    const Nanos now = monotonic_ns();
    core_.set_queued_bytes(shared_->queued_bytes.load(std::memory_order_relaxed));
    core_.on_fetch(asked, now, decisions);
    if (multicasts_) shared_->burst_alarm.by(core_.multicast().ready_at(now));
  }
  for (size_t i = 0; i < decisions.size(); ++i) {
    const Decision& decision = decisions[i];
    const bool last = i + 1 == decisions.size();
    switch (decision.kind) {
      case Decision::Kind::give:
        SNOW_TRY(give(fetch, decision.run, last, responder));
        break;
      case Decision::Kind::redirect:
        SNOW_TRY(redirect(fetch, decision, last, responder));
        break;
      case Decision::Kind::coming:
      case Decision::Kind::already_coming:
        SNOW_TRY(responder.notice(wire::Type::coming, fetch, decision.run, decision.wait, last));
        break;
      case Decision::Kind::retry:
        SNOW_TRY(responder.notice(wire::Type::retry, fetch, decision.run, decision.wait, last));
    }
  }
  return {};
}

Result<void> OfferState::give(const wire::Fetch& fetch, Run run, bool last, Responder& responder) {
  if (auto got = read(run, responder.room(run.count)); !got) {
    return lost(fetch, run, last, got.error(), responder);
  }
  SNOW_ASSIGN(const Responder::Sent sent, responder.pages(fetch, run, last));
  const std::lock_guard lock(mutex_);
  bytes_sent_ += sent.bytes;
  pages_sent_ += sent.pages;
  return {};
}

// Bytes that exist and cannot be read: the other host asks again, for as long as it takes.
Result<void> OfferState::lost(const wire::Fetch& fetch, Run run, bool last, const Error& error,
                              Responder& responder) {
  {
    const std::lock_guard lock(mutex_);
    if (lost_reads_++ % 100 == 0) {
      log_error("image {}: cannot be read: {}", to_text(descriptor_.id), error.message);
    }
  }
  return responder.notice(wire::Type::retry, fetch, run, kLostRetry, last);
}

bool OfferState::known_hashes(Run run, std::span<wire::PageHash> into) const {
  const std::lock_guard lock(mutex_);
  if (hashes_.empty()) return false;
  for (uint32_t i = 0; i < run.count; ++i) {
    const uint32_t page = run.first + i;
    if ((hashed_words_[page / 64] >> (page % 64) & 1) == 0) return false;
    into[i] = hashes_[page];
  }
  return true;
}

Result<void> OfferState::hashes(Run run, std::span<std::byte> room,
                                std::span<wire::PageHash> into) {
  if (known_hashes(run, into)) return {};
  SNOW_TRY(read(run, room));
  for (uint32_t i = 0; i < run.count; ++i) {
    const std::byte* const page = room.data() + size_t{i} * kPageBytes;
    into[i] = is_zero_page(page) ? zero_page_hash() : page_hash(page);
  }
  const std::lock_guard lock(mutex_);
  if (hashes_.empty()) {
    hashes_.resize(pages_);
    hashed_words_.resize(Bitmap::words_of(pages_));
  }
  for (uint32_t i = 0; i < run.count; ++i) {
    const uint32_t page = run.first + i;
    hashes_[page] = into[i];
    hashed_words_[page / 64] |= uint64_t{1} << (page % 64);
  }
  return {};
}

// Pages of zeros among them are answered at once.
Result<void> OfferState::redirect(const wire::Fetch& fetch, const Decision& decision, bool last,
                                  Responder& responder) {
  std::array<wire::PageHash, kMaxRunPages> all{};
  const Run run = decision.run;
  if (auto got = hashes(run, responder.room(run.count), all); !got) {
    return lost(fetch, run, last, got.error(), responder);
  }
  wire::Redirect message;
  message.tag = fetch.tag;
  message.no_wait = decision.no_wait;
  for (uint8_t i = 0; i < decision.host_count && i < wire::kMaxHosts; ++i) {
    message.hosts[message.host_count++] = shared_->hosts.name(decision.hosts[i]);
  }
  for (uint32_t at = 0; at < run.count;) {
    const bool zero = all[at] == zero_page_hash();
    uint32_t end = at + 1;
    while (end < run.count && (all[end] == zero_page_hash()) == zero) ++end;
    message.run = {run.first + at, end - at};
    message.last = last && end == run.count;
    if (zero) {
      SNOW_TRY(responder.zeros(fetch, message.run, message.last));
    } else {
      std::copy(all.begin() + at, all.begin() + end, message.hashes.begin());
      SNOW_TRY(responder.message(wire::Type::redirect, message));
    }
    at = end;
  }
  return {};
}

const Bitmap& OfferState::zero_map() {
  std::call_once(zero_once_, [this] {
    const bool known = static_cast<bool>(data_ranges_);
    zero_words_.assign(Bitmap::words_of(pages_), known ? ~uint64_t{0} : 0);
    zero_map_ = Bitmap(zero_words_.data(), pages_);
    if (!known) return;
    for (const Range& range : data_ranges_()) {
      if (range.length == 0 || range.offset >= descriptor_.size_bytes) continue;
      const uint64_t length = std::min(range.length, descriptor_.size_bytes - range.offset);
      const auto first = static_cast<uint32_t>(range.offset / kPageBytes);
      const uint32_t end = pages_of(range.offset + length);
      for (uint32_t page = first; page < end; ++page) {
        zero_words_[page / 64] &= ~(uint64_t{1} << (page % 64));
      }
    }
    data_ranges_ = nullptr;
  });
  return zero_map_;
}

Result<void> OfferState::map(const wire::About& about, Responder& responder) {
  const Run run = about.run;
  if (run.count == 0 || run.count > wire::kMaxMapPages || run.end() > pages_) {
    return fail(Code::corrupt, "MAP: pages {}+{} of {}", run.first, run.count, pages_);
  }
  const Bitmap& map = zero_map();
  wire::Buffer bits((run.count + 7) / 8);
  for (uint32_t at = map.next_set(run.first, run.end()); at < run.end();) {
    const uint32_t end = map.next_clear(at, run.end());
    for (uint32_t page = at - run.first; page < end - run.first; ++page) {
      bits[page / 8] |= std::byte{1} << (page % 8);
    }
    at = map.next_set(end, run.end());
  }
  return responder.map({about.tag, run}, bits);
}

Result<void> OfferState::subscribe(const wire::About& about, bool listens, Responder& responder) {
  bool leave = false;
  {
    const std::lock_guard lock(mutex_);
    const HostNumber host = responder.host();
    std::erase(to_leave_, host);
    if (listens) {
      leave = !multicasts_ || !core_.multicast().subscribe(host, monotonic_ns());
    } else {
      core_.multicast().unsubscribe(host);
    }
  }
  return responder.message(wire::Type::ok, wire::Short{about.tag, leave});
}

Result<void> OfferState::have(const wire::About& about, Responder& responder) {
  if (about.run.end() > pages_) return fail(Code::corrupt, "HAVE: beyond the image");
  {
    const std::lock_guard lock(mutex_);
    core_.note_holder(responder.host(), about.run);
  }
  return responder.message(wire::Type::ok, wire::Short{about.tag, false});
}

Result<void> OfferState::report(const wire::Report& report, Responder& responder) {
  bool leave = false;
  {
    const std::lock_guard lock(mutex_);
    const HostNumber reporter = responder.host();
    const Nanos now = monotonic_ns();
    for (const wire::HostReport& entry : report.hosts) {
      const HostNumber host = shared_->hosts.number(entry.host);
      if (entry.wrong) {
        core_.report_wrong(reporter, host);
      } else {
        core_.report_slow(reporter, host, now);
      }
    }
    if (report.got + report.missed > 0) {
      core_.multicast().report(reporter, report.got, report.missed, now);
    }
    leave = std::erase(to_leave_, reporter) > 0;
  }
  return responder.message(wire::Type::ok, wire::Short{report.tag, leave});
}

std::optional<Run> OfferState::next_burst(Nanos now, Nanos& ready_at) {
  const std::lock_guard lock(mutex_);
  const auto run = core_.multicast().next(now);
  ready_at = run ? now : core_.multicast().ready_at(now);
  return run;
}

uint64_t OfferState::multicast_rate() const {
  const std::lock_guard lock(mutex_);
  return core_.multicast().rate_bytes_per_s();
}

void OfferState::count_multicast(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  multicast_bytes_ += bytes;
}

void OfferState::tick(Nanos now) {
  const std::lock_guard lock(mutex_);
  core_.multicast().tick(now, to_leave_);
}

void OfferState::forget_host(HostNumber host) {
  const std::lock_guard lock(mutex_);
  core_.forget_host(host);
  std::erase(to_leave_, host);
}

Descriptor OfferState::describe() const {
  Descriptor descriptor = descriptor_;
  const std::lock_guard lock(mutex_);
  descriptor.hot = core_.working_set(kWorkingSetGap);
  if (descriptor.hot.size() > kMaxHotRanges) descriptor.hot.resize(kMaxHotRanges);
  return descriptor;
}

nlohmann::json OfferState::statistics() const {
  const std::lock_guard lock(mutex_);
  const OriginCounters& counters = core_.counters();
  return {{"id", to_text(descriptor_.id)},
          {"pages", pages_},
          {"bytes_sent", bytes_sent_},
          {"pages_sent", pages_sent_},
          {"fetches", counters.fetches},
          {"pages_given", counters.pages_given},
          {"pages_redirected", counters.pages_redirected},
          {"pages_coming", counters.pages_coming + counters.pages_already_coming},
          {"retries", counters.retries},
          {"reads_failed", lost_reads_},
          {"multicast_pages", counters.pages_multicast},
          {"multicast_bytes", multicast_bytes_},
          {"multicast_listeners", core_.multicast().listeners()},
          {"multicast_rate", core_.multicast().rate_bytes_per_s()}};
}

}  // namespace snow::exchange
