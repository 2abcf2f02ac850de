#include "sim/network.h"

#include <algorithm>

namespace snow::sim {
namespace {

constexpr double kPacketBytes = 1448;
constexpr uint32_t kFragmentsPerPage = 3;
constexpr double kBufferBytes = 512 * 1024;  // of a switch, for one receiver
constexpr Nanos kRetransmitTimeout = 200 * exchange::kMillisecond;

Nanos time_for(uint64_t bytes, double rate) {
  return static_cast<Nanos>(static_cast<double>(bytes) / rate * 1e9);
}

}  // namespace

Network::Network(std::vector<LinkSpec> links, Random random)
    : links_(std::move(links)),
      up_(links_.size()),
      down_(links_.size()),
      group_(links_.size(), 0),
      random_(random) {}

Network::Slot Network::occupy(Pipe& pipe, double rate, uint64_t bytes, Lane lane, Nanos now,
                              Nanos until) {
  const Nanos time = time_for(bytes, rate);
  const Nanos start = std::max(now, lane == Lane::demand ? pipe.demand_until : pipe.bulk_until);
  if (start >= until) return {start, exchange::kNever};
  const Nanos used = std::min(time, until - start);
  if (lane != Lane::demand) {
    pipe.bulk_until = start + used;
    return {start, start + time};
  }
  const Nanos end = start + (pipe.bulk_until > start ? 2 * time : time);
  pipe.demand_until = std::min(end, until);
  pipe.bulk_until = std::max(pipe.bulk_until, start) + used;
  return {start, end};
}

Nanos Network::unicast(HostNumber from, HostNumber to, uint64_t bytes, Lane lane, Nanos now,
                       Nanos deadline) {
  const Nanos delay = links_[from].delay + links_[to].delay;
  const Nanos until = deadline == 0 ? exchange::kNever : deadline;
  const Slot up = occupy(up_[from], links_[from].up_bytes_per_s, bytes, lane, now, until);
  if (up.end == exchange::kNever) return exchange::kNever;
  const Slot down =
      occupy(down_[to], links_[to].down_bytes_per_s, bytes, lane, up.start + delay, until);
  if (down.end == exchange::kNever) return exchange::kNever;
  Nanos at = std::max(down.end, up.end + delay);
  const double loss = links_[from].loss + links_[to].loss;
  if (loss > 0) {
    const double packets = 1 + static_cast<double>(bytes) / kPacketBytes;
    if (random_.chance(std::min(0.9, loss * packets))) at += 2 * delay + exchange::kMillisecond;
    if (random_.chance(loss)) at += kRetransmitTimeout;  // the last packet, or its repair
  }
  return at;
}

Network::Burst Network::multicast(HostNumber from, uint64_t bytes, Nanos now) {
  const Slot slot = occupy(up_[from], links_[from].up_bytes_per_s, bytes, Lane::demand, now);
  return {slot.start, slot.end, bytes};
}

Network::Receipt Network::receive(HostNumber from, HostNumber to, const Burst& burst,
                                  uint32_t pages) {
  Receipt receipt;
  const Nanos delay = links_[from].delay + links_[to].delay;
  const Nanos arrives = burst.start + delay;
  Pipe& pipe = down_[to];
  const double rate = links_[to].down_bytes_per_s;
  const auto behind = [&](Nanos until) {
    return static_cast<double>(until - arrives) * rate / 1e9 > kBufferBytes;
  };
  const uint32_t packets = 1 + pages * kFragmentsPerPage;  // with the announcement
  if (!links_[to].multicast) return receipt;
  const bool full = behind(pipe.demand_until);
  // TCP in bulk keeps the buffer full now and then.
  const double loss = links_[from].loss + links_[to].loss + (behind(pipe.bulk_until) ? 0.005 : 0);
  if (full || random_.chance(loss)) {  // or the announcement is lost
    receipt.missed = packets;
    receipt.at = burst.end + delay;
    return receipt;
  }
  const Slot slot = occupy(pipe, rate, burst.bytes, Lane::demand, arrives);
  receipt.at = std::max(slot.end, burst.end + delay);
  for (uint32_t page = 0; page < pages; ++page) {
    uint32_t lost = 0;
    if (loss > 0) {
      for (uint32_t i = 0; i < kFragmentsPerPage; ++i) lost += random_.chance(loss) ? 1 : 0;
    }
    receipt.missed += lost;
    if (lost == 0) receipt.pages |= uint64_t{1} << page;
  }
  receipt.got = packets - receipt.missed;
  return receipt;
}

uint64_t Network::backlog_bytes(HostNumber host, Nanos now) const {
  const Pipe& pipe = up_[host];
  const Nanos until = std::max(pipe.demand_until, pipe.bulk_until);
  if (until <= now) return 0;
  return static_cast<uint64_t>(static_cast<double>(until - now) / 1e9 *
                               links_[host].up_bytes_per_s);
}

}  // namespace snow::sim
