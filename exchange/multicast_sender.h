// Sends the bursts that the offers' cores decide on: one thread, one UDP socket. Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "exchange/multicast_packet.h"
#include "exchange/offer_state.h"
#include "exchange/shared.h"

namespace snow::exchange {

class MulticastSender {
 public:
  using Offers = std::function<std::vector<std::shared_ptr<OfferState>>()>;
  // Code::host_failed where the interface cannot be had, or the key not be read.
  static Result<std::unique_ptr<MulticastSender>> start(std::shared_ptr<Shared> shared,
                                                        Offers offers);
  ~MulticastSender() { stop(); }
  void stop();

  // Where the image's group is, by the settings.
  [[nodiscard]] Result<MulticastGroup> group_of(const ImageId& image) const;
  [[nodiscard]] std::string public_key() const { return key_.public_pem(); }

 private:
  MulticastSender(std::shared_ptr<Shared> shared, Offers offers, Fd fd, SigningKey key);
  void run();
  void send_burst(OfferState& offer, Run run);
  Result<Announcement> announce(OfferState& offer, Run run);
  void add_packet(Sealer& sealer, const wire::Buffer& content);
  void flush(OfferState& offer);

  const std::shared_ptr<Shared> shared_;
  const Offers offers_;
  const Fd fd_;
  const SigningKey key_;
  // The thread's own.
  uint64_t session_ = 0;
  uint32_t counter_ = 0;
  uint32_t burst_ = 0;
  wire::Buffer pages_, content_, announced_;
  std::vector<wire::Buffer> batch_;
  size_t batched_ = 0;
  Nanos paced_ = 0;  // the next batch not before
  std::thread thread_;
};

}  // namespace snow::exchange
