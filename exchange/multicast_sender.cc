#include "exchange/multicast_sender.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/file.h"
#include "base/log.h"

namespace snow::exchange {
namespace {

constexpr size_t kBatch = 16;           // packets in one system call
constexpr uint32_t kAnnounceTwice = 8;  // pages: a lost announcement of more costs too much
// What waits in the interface's queue at most: what that has no room for would be lost for all.
constexpr int kSendBuffer = 256 << 10;
constexpr Nanos kLongestSleep = kSecond;

Result<Fd> open_socket(const MulticastSettings& settings) {
  in_addr interface {};
  if (::inet_pton(AF_INET, settings.interface_address.c_str(), &interface) != 1) {
    return fail(Code::invalid, "multicast: {:?} is no IPv4 address of an interface",
                settings.interface_address);
  }
  Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(Code::host_failed, "multicast: no socket");
  const int ttl = settings.ttl;
  if (::setsockopt(fd.get(), IPPROTO_IP, IP_MULTICAST_IF, &interface, sizeof interface) != 0 ||
      ::setsockopt(fd.get(), IPPROTO_IP, IP_MULTICAST_TTL, &ttl, sizeof ttl) != 0) {
    return fail_errno(Code::host_failed, "multicast: cannot use the interface of {}",
                      settings.interface_address);
  }
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUF, &kSendBuffer, sizeof kSendBuffer);
  return fd;
}

sockaddr_in address_of(const MulticastGroup& group) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(group.port);
  ::inet_pton(AF_INET, group.address.c_str(), &address.sin_addr);
  return address;
}

}  // namespace

Result<std::unique_ptr<MulticastSender>> MulticastSender::start(std::shared_ptr<Shared> shared,
                                                                Offers offers) {
  SNOW_ASSIGN(Fd fd, open_socket(shared->options.multicast));
  SNOW_ASSIGN(SigningKey key, SigningKey::from_private_file(shared->options.key_file));
  std::unique_ptr<MulticastSender> sender(
      new MulticastSender(std::move(shared), std::move(offers), std::move(fd), std::move(key)));
  SNOW_TRY(sender->group_of(ImageId{}));
  sender->thread_ = std::thread([raw = sender.get()] { raw->run(); });
  return sender;
}

MulticastSender::MulticastSender(std::shared_ptr<Shared> shared, Offers offers, Fd fd,
                                 SigningKey key)
    : shared_(std::move(shared)),
      offers_(std::move(offers)),
      fd_(std::move(fd)),
      key_(std::move(key)),
      pages_(kMaxRunPages * kPageBytes),
      batch_(kBatch) {}

void MulticastSender::stop() {
  if (!thread_.joinable()) return;
  shared_->burst_alarm.by(0);
  thread_.join();
}

Result<MulticastGroup> MulticastSender::group_of(const ImageId& image) const {
  const MulticastSettings& settings = shared_->options.multicast;
  in_addr base{};
  if (::inet_pton(AF_INET, settings.group_base.c_str(), &base) != 1 ||
      !IN_MULTICAST(ntohl(base.s_addr)) || settings.ports == 0) {
    return fail(Code::invalid, "multicast: {:?} is no multicast address", settings.group_base);
  }
  const uint32_t bits =
      std::to_integer<uint32_t>(image[0]) << 8 | std::to_integer<uint32_t>(image[1]);
  base.s_addr = htonl((ntohl(base.s_addr) & ~0xffffu) | bits);
  std::array<char, INET_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET, &base, text.data(), text.size());
  MulticastGroup group;
  group.address = text.data();
  group.port = static_cast<uint16_t>(settings.port_base +
                                     std::to_integer<uint32_t>(image[2]) % settings.ports);
  group.key = key_.group_key(image);
  return group;
}

void MulticastSender::run() {
  while (!shared_->stopping) {
    shared_->burst_alarm.begin();
    Nanos next = monotonic_ns() + kLongestSleep;
    bool sent = false;
    for (const auto& offer : offers_()) {
      if (!offer->multicasts()) continue;
      Nanos ready_at = kNever;
      const auto run = offer->next_burst(monotonic_ns(), ready_at);
      if (run) {
        send_burst(*offer, *run);
        sent = true;
      }
      next = std::min(next, ready_at);
    }
    if (shared_->stopping) return;
    if (!sent) shared_->burst_alarm.wait_until(next);
  }
}

Result<Announcement> MulticastSender::announce(OfferState& offer, Run run) {
  const auto room = std::span(pages_).first(size_t{run.count} * kPageBytes);
  SNOW_TRY(offer.read(run, room));
  Announcement announcement;
  announcement.burst = ++burst_;
  announcement.run = run;
  pack_burst(room, announcement);
  signed_text(announcement, offer.descriptor().id, session_, content_);
  SNOW_ASSIGN(announcement.signature, key_.sign(content_));
  return announcement;
}

void MulticastSender::send_burst(OfferState& offer, Run run) {
  // A number is never used twice under one key: a new session before the counter is at its end.
  if (session_ == 0 || counter_ > UINT32_MAX - 1024) {
    const auto bytes = random_bytes(sizeof session_);
    std::memcpy(&session_, bytes.data(), sizeof session_);
    counter_ = 0;
  }
  const auto announcement = announce(offer, run);
  if (!announcement) {  // who waits for it asks again
    log_debug("multicast: {}", announcement.error().message);
    return;
  }
  Sealer sealer(offer.descriptor().multicast->key, offer.descriptor().id);
  encode(*announcement, announced_);
  add_packet(sealer, announced_);
  paced_ = std::max(paced_, monotonic_ns());
  for (uint16_t page = 0; page < run.count; ++page) {
    if (page == run.count / 2 && run.count >= kAnnounceTwice) add_packet(sealer, announced_);
    for (uint8_t part = 0; part < fragments_of(announcement->sizes[page]); ++part) {
      encode(fragment_of(*announcement, page, part, pages_), content_);
      if (batched_ == kBatch) flush(offer);
      add_packet(sealer, content_);
    }
  }
  flush(offer);
}

void MulticastSender::add_packet(Sealer& sealer, const wire::Buffer& content) {
  if (batched_ == batch_.size()) batch_.emplace_back();
  sealer.seal({session_, counter_++}, content, batch_[batched_++]);
}

// At the core's rate: a burst that goes out at once overruns the receivers' buffers.
void MulticastSender::flush(OfferState& offer) {
  if (batched_ == 0) return;
  const Nanos left = paced_ - monotonic_ns();
  if (left > 50 * kMicrosecond) {
    const timespec pause{0, static_cast<long>(std::min(left, 100 * kMillisecond))};
    ::nanosleep(&pause, nullptr);
  }
  sockaddr_in address = address_of(*offer.descriptor().multicast);
  std::vector<iovec> parts(batched_);
  std::vector<mmsghdr> messages(batched_);
  uint64_t bytes = 0;
  for (size_t i = 0; i < batched_; ++i) {
    parts[i] = {batch_[i].data(), batch_[i].size()};
    messages[i].msg_hdr.msg_name = &address;
    messages[i].msg_hdr.msg_namelen = sizeof address;
    messages[i].msg_hdr.msg_iov = &parts[i];
    messages[i].msg_hdr.msg_iovlen = 1;
    bytes += batch_[i].size();
  }
  // What cannot be sent is lost, as on the way.
  for (size_t done = 0; done < batched_;) {
    const int sent =
        ::sendmmsg(fd_.get(), messages.data() + done, static_cast<unsigned>(batched_ - done), 0);
    if (sent <= 0) break;
    done += static_cast<size_t>(sent);
  }
  batched_ = 0;
  offer.count_multicast(bytes);
  const uint64_t rate = std::max<uint64_t>(offer.multicast_rate(), 1);
  paced_ += static_cast<Nanos>(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate));
}

}  // namespace snow::exchange
