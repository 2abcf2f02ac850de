// An image of which this host is the origin: its bytes, and the origin's half of the decision core.
// Thread-safe; the mutex is never held while bytes are read or sent.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <vector>

#include "exchange/bitmap.h"
#include "exchange/core/origin.h"
#include "exchange/exchange.h"
#include "exchange/responder.h"
#include "exchange/shared.h"
#include "exchange/wire.h"
#include "image/content.h"

namespace snow::exchange {

class OfferState {
 public:
  OfferState(std::shared_ptr<Shared> shared, Descriptor descriptor,
             std::shared_ptr<Content> content, Offer offer);

  // Requests of other hosts; each sends its answer.
  Result<void> fetch(const wire::Fetch& fetch, Responder& responder);
  Result<void> map(const wire::About& about, Responder& responder);
  Result<void> subscribe(const wire::About& about, bool listens, Responder& responder);
  Result<void> have(const wire::About& about, Responder& responder);
  Result<void> report(const wire::Report& report, Responder& responder);

  // For the thread that multicasts: what to send next, or when to ask again.
  std::optional<Run> next_burst(Nanos now, Nanos& ready_at);
  [[nodiscard]] bool multicasts() const { return multicasts_; }
  [[nodiscard]] uint64_t multicast_rate() const;
  void count_multicast(uint64_t bytes);
  void tick(Nanos now);

  void forget_host(HostNumber host);
  [[nodiscard]] const Descriptor& descriptor() const { return descriptor_; }
  [[nodiscard]] Descriptor describe() const;  // with the working set
  [[nodiscard]] nlohmann::json statistics() const;

  // The bytes of a run within the image, filled up with zeros.
  Result<void> read(Run run, std::span<std::byte> into);

 private:
  Result<void> give(const wire::Fetch& fetch, Run run, bool last, Responder& responder);
  Result<void> redirect(const wire::Fetch& fetch, const Decision& decision, bool last,
                        Responder& responder);
  Result<void> lost(const wire::Fetch& fetch, Run run, bool last, const Error& error,
                    Responder& responder);
  bool known_hashes(Run run, std::span<wire::PageHash> into) const;
  Result<void> hashes(Run run, std::span<std::byte> room, std::span<wire::PageHash> into);
  const Bitmap& zero_map();

  const std::shared_ptr<Shared> shared_;
  const Descriptor descriptor_;
  const std::shared_ptr<Content> content_;
  const uint32_t pages_;
  const bool multicasts_;

  std::once_flag zero_once_;
  std::function<std::vector<Range>()> data_ranges_;
  std::vector<uint64_t> zero_words_;
  Bitmap zero_map_;

  mutable std::mutex mutex_;  // of all below
  Origin core_;
  std::vector<wire::PageHash> hashes_;  // empty until the first redirect
  std::vector<uint64_t> hashed_words_;
  std::vector<HostNumber> to_leave_;  // the multicast group, when they next report
  uint64_t bytes_sent_ = 0, pages_sent_ = 0, multicast_bytes_ = 0;
  uint64_t lost_reads_ = 0;
};

}  // namespace snow::exchange
