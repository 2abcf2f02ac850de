#include "exchange/reassembly.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "exchange/page_body.h"

namespace snow::exchange {

void Reassembly::add(wire::Bytes packet) {
  const auto number = sealer_.open(packet, content_);
  if (!number) return;
  count(*number);
  const PacketContent parsed = parse_packet(content_);
  if (parsed.announcement) announce(*number, *parsed.announcement);
  if (parsed.fragment) add(*number, *parsed.fragment);
}

bool Reassembly::whole(const Burst& burst) {
  return burst.announced && std::popcount(burst.done) == static_cast<int>(burst.run.count);
}

Reassembly::Burst* Reassembly::find(uint64_t session, uint32_t number) {
  for (const auto& burst : bursts_) {
    if (burst->session == session && burst->number == number) return burst.get();
  }
  std::unique_ptr<Burst> burst;
  if (bursts_.size() < kMostBursts) {
    burst = std::make_unique<Burst>();
  } else {
    burst = std::move(bursts_.front());
    bursts_.pop_front();
    std::vector<std::byte> bytes = std::move(burst->bytes);
    *burst = Burst();
    burst->bytes = std::move(bytes);
  }
  burst->session = session;
  burst->number = number;
  burst->bytes.resize(kMaxRunPages * kPageBytes);
  bursts_.push_back(std::move(burst));
  return bursts_.back().get();
}

void Reassembly::announce(const PacketNumber& number, const Announcement& announcement) {
  const Run run = announcement.run;
  if (run.end() > pages_) return;
  Burst* const burst = find(number.session, announcement.burst);
  if (burst->announced) return;
  signed_text(announcement, image_, number.session, text_);
  if (!origin_.verify(text_, announcement.signature)) return;
  burst->announced = true;
  burst->run = run;
  burst->hashes = announcement.hashes;
  burst->sizes = announcement.sizes;
  for (uint32_t i = 0; i < run.count; ++i) check(*burst, i);
}

void Reassembly::add(const PacketNumber& number, const Fragment& fragment) {
  Burst* const burst = find(number.session, fragment.burst);
  if (burst->announced && fragment.page >= burst->run.count) return;
  if ((burst->done >> fragment.page & 1) != 0) return;
  std::copy(fragment.bytes.begin(), fragment.bytes.end(),
            burst->bytes.begin() + static_cast<ptrdiff_t>(fragment.page * kPageBytes +
                                                          fragment.part * kFragmentBytes));
  burst->fragments.set(fragment.page * kFragmentsPerPage + fragment.part);
  if (burst->announced) check(*burst, fragment.page);
}

void Reassembly::check(Burst& burst, uint32_t page) {
  const uint64_t bit = uint64_t{1} << page;
  if ((burst.done & bit) != 0) return;
  if (burst.hashes[page] == zero_page_hash()) {
    burst.done |= bit;
    burst.ready |= bit;
    burst.zeros |= bit;
    return;
  }
  const size_t parts = std::max<size_t>(fragments_of(burst.sizes[page]), 1);
  for (size_t part = 0; part < parts; ++part) {
    if (!burst.fragments.test(page * kFragmentsPerPage + part)) return;
  }
  if (!unpack(burst, page)) {
    // Some holder of the key made some of them up: begun anew, for the true ones may yet come.
    for (size_t part = 0; part < kFragmentsPerPage; ++part) {
      burst.fragments.reset(page * kFragmentsPerPage + part);
    }
    return;
  }
  burst.done |= bit;
  burst.ready |= bit;
}

// The page in the place of its body, if it is the one that was announced.
bool Reassembly::unpack(Burst& burst, uint32_t page) {
  const std::span body(burst.bytes.data() + size_t{page} * kPageBytes, kPageBytes);
  const size_t size = burst.sizes[page];
  if (size == kPageBytes) return page_hash(body.data()) == burst.hashes[page];
  page_.resize(kPageBytes);
  if (!unpack_page(body.first(size), page_) || page_hash(page_.data()) != burst.hashes[page]) {
    return false;
  }
  std::copy(page_.begin(), page_.end(), body.begin());
  return true;
}

void Reassembly::count(const PacketNumber& number) {
  if (number.session != session_) {
    session_ = number.session;
    highest_ = number.counter;
    seen_ = 1;
    ++counts_.got;
    return;
  }
  if (number.counter > highest_) {
    const uint32_t step = number.counter - highest_;
    counts_.missed += step - 1;
    seen_ = step >= 64 ? 1 : seen_ << step | 1;
    highest_ = number.counter;
    ++counts_.got;
    return;
  }
  const uint32_t back = highest_ - number.counter;
  if (back < 64 && (seen_ >> back & 1) != 0) return;  // a second copy
  if (back < 64) seen_ |= uint64_t{1} << back;
  ++counts_.got;
  if (counts_.missed > 0) --counts_.missed;
}

PacketCounts Reassembly::take_counts() { return std::exchange(counts_, {}); }

}  // namespace snow::exchange
