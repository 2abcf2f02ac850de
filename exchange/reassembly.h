// Bursts put together again from packets that come in any order, more than once, or not at all.
// Gives out only pages whose hash stands in an announcement that the origin signed. One thread.
//
// Memory: at most kMostBursts bursts at a time, 256 KiB each; the oldest goes first.
#pragma once

#include <bitset>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "exchange/multicast_packet.h"

namespace snow::exchange {

struct PacketCounts {
  uint64_t got = 0, missed = 0;
};

class Reassembly {
 public:
  static constexpr size_t kMostBursts = 6;

  Reassembly(const MulticastGroup& group, const ImageId& image, uint32_t pages, SigningKey origin)
      : sealer_(group.key, image), image_(image), pages_(pages), origin_(std::move(origin)) {}

  void add(wire::Bytes packet);

  // Pages that have become whole and verified since the last call: `visit(Run, zeros, raw)` for
  // each stretch; `raw` has those that are not zeros, one after the other. Of a burst that is still
  // coming only if `all`: a whole burst costs who keeps it little more than one of its pages. True:
  // some are left for the next call.
  template <class Visit>
  bool take_ready(bool all, Visit&& visit) {
    bool left = false;
    for (const auto& burst : bursts_) {
      const bool coming = burst == bursts_.back() && !whole(*burst);
      if (all || !coming) {
        take_ready(*burst, visit);
      } else {
        left = burst->ready != 0;
      }
    }
    return left;
  }
  // Since the last call. Packets that come late are not missed.
  PacketCounts take_counts();

 private:
  struct Burst {
    uint64_t session = 0;
    uint32_t number = 0;
    bool announced = false;
    Run run;
    std::array<wire::PageHash, kMaxRunPages> hashes{};
    std::array<uint16_t, kMaxRunPages> sizes{};
    std::bitset<kMaxRunPages * kFragmentsPerPage> fragments;
    uint64_t ready = 0, done = 0;  // bit i: page run.first + i
    uint64_t zeros = 0;
    std::vector<std::byte> bytes;  // of each page its body; if it is done, itself
  };

  static bool whole(const Burst& burst);
  Burst* find(uint64_t session, uint32_t number);
  void announce(const PacketNumber& number, const Announcement& announcement);
  void add(const PacketNumber& number, const Fragment& fragment);
  void check(Burst& burst, uint32_t page);
  bool unpack(Burst& burst, uint32_t page);
  void count(const PacketNumber& number);
  template <class Visit>
  void take_ready(Burst& burst, Visit& visit) {
    for (uint32_t at = 0; burst.ready != 0 && at < burst.run.count;) {
      if ((burst.ready >> at & 1) == 0) {
        ++at;
        continue;
      }
      const bool zero = (burst.zeros >> at & 1) != 0;
      uint32_t end = at;
      while (end < burst.run.count && (burst.ready >> end & 1) != 0 &&
             ((burst.zeros >> end & 1) != 0) == zero) {
        burst.ready &= ~(uint64_t{1} << end++);
      }
      const uint32_t count = end - at;
      const uint64_t mask = count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
      const wire::Bytes raw =
          zero ? wire::Bytes()
               : wire::Bytes(burst.bytes)
                     .subspan(size_t{at} * kPageBytes, size_t{count} * kPageBytes);
      visit(Run{burst.run.first + at, count}, zero ? mask : 0, raw);
      at = end;
    }
  }

  Sealer sealer_;
  const ImageId image_;
  const uint32_t pages_;
  const SigningKey origin_;
  std::deque<std::unique_ptr<Burst>> bursts_;
  wire::Buffer content_, text_, page_;
  PacketCounts counts_;
  uint64_t session_ = 0;  // the newest; counters are its
  uint32_t highest_ = 0;
  uint64_t seen_ = 0;  // bit i: packet highest_ - i
};

}  // namespace snow::exchange
