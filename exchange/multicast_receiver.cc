#include "exchange/multicast_receiver.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/log.h"

namespace snow::exchange {
namespace {

constexpr size_t kBatch = 64;
constexpr int kBatchesAtOnce = 8;
constexpr int kReceiveBuffer = 8 << 20;
constexpr int kLookAroundMs = 500;
constexpr int kRestMs = 2;  // a burst of which nothing has come for so long ends here

Result<Fd> join_group(const MulticastGroup& group, const std::string& interface) {
  Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno(Code::host_failed, "multicast: no socket");
  const int on = 1;
  const int off = 0;
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  (void)::setsockopt(fd.get(), IPPROTO_IP, IP_MULTICAST_ALL, &off, sizeof off);
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof kReceiveBuffer) !=
      0) {
    (void)::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kReceiveBuffer, sizeof kReceiveBuffer);
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(group.port);
  ip_mreq membership{};
  if (::inet_pton(AF_INET, group.address.c_str(), &address.sin_addr) != 1 ||
      ::inet_pton(AF_INET, interface.c_str(), &membership.imr_interface) != 1) {
    return fail(Code::invalid, "multicast: group {:?} on the interface of {:?}: no addresses",
                group.address, interface);
  }
  membership.imr_multiaddr = address.sin_addr;
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::setsockopt(fd.get(), IPPROTO_IP, IP_ADD_MEMBERSHIP, &membership, sizeof membership) != 0) {
    return fail_errno(Code::host_failed, "multicast: cannot join {}:{} on the interface of {}",
                      group.address, group.port, interface);
  }
  return fd;
}

}  // namespace

MulticastReceiver::MulticastReceiver(std::shared_ptr<Shared> shared)
    : shared_(std::move(shared)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  thread_ = std::thread([this] { run(); });
}

void MulticastReceiver::stop() {
  if (!thread_.joinable()) return;
  (void)::eventfd_write(wake_.get(), 1);
  thread_.join();
}

size_t MulticastReceiver::groups() const {
  const std::lock_guard lock(mutex_);
  return members_.size();
}

Result<void> MulticastReceiver::join(const std::shared_ptr<LayerState>& layer) {
  const Descriptor& descriptor = layer->descriptor();
  SNOW_ASSIGN(SigningKey origin, SigningKey::from_public_pem(descriptor.origin_key));
  SNOW_ASSIGN(Fd fd,
              join_group(*descriptor.multicast, shared_->options.multicast.interface_address));
  layer->listen(true);
  auto member =
      std::make_shared<Member>(std::move(fd), layer,
                               Reassembly(*descriptor.multicast, descriptor.id,
                                          pages_of(descriptor.size_bytes), std::move(origin)));
  const std::lock_guard lock(mutex_);
  members_.push_back(std::move(member));
  (void)::eventfd_write(wake_.get(), 1);
  return {};
}

void MulticastReceiver::run() {
  while (!shared_->stopping) {
    std::vector<std::shared_ptr<Member>> members;
    {
      const std::lock_guard lock(mutex_);
      std::erase_if(members_, [](const auto& member) {
        const auto layer = member->layer.lock();
        return layer == nullptr || !layer->wants_multicast();
      });
      members = members_;
    }
    std::vector<pollfd> fds = {{wake_.get(), POLLIN, 0}};
    for (const auto& member : members) fds.push_back({member->fd.get(), POLLIN, 0});
    const bool left = std::any_of(members.begin(), members.end(),
                                  [](const auto& member) { return member->left; });
    if (::poll(fds.data(), fds.size(), left ? kRestMs : kLookAroundMs) < 0) continue;
    eventfd_t woken = 0;
    if (fds[0].revents != 0) (void)::eventfd_read(wake_.get(), &woken);
    for (size_t i = 0; i < members.size(); ++i) {
      if (fds[i + 1].revents != 0) {
        receive(*members[i]);
      } else if (members[i]->left) {
        if (const auto layer = members[i]->layer.lock()) take(*members[i], *layer, true);
      }
    }
  }
}

void MulticastReceiver::take(Member& member, LayerState& layer, bool all) {
  member.left = member.reassembly.take_ready(
      all, [&](Run run, uint64_t zeros, wire::Bytes raw) { layer.unasked(run, zeros, raw); });
}

void MulticastReceiver::receive(Member& member) {
  const auto layer = member.layer.lock();
  if (layer == nullptr) return;
  for (int round = 0; round < kBatchesAtOnce; ++round) {
    packets_.resize(kBatch);
    std::array<iovec, kBatch> parts{};
    std::array<mmsghdr, kBatch> messages{};
    for (size_t i = 0; i < kBatch; ++i) {
      packets_[i].resize(kMaxPacketBytes + 1);  // one more: a longer one is none of ours
      parts[i] = {packets_[i].data(), packets_[i].size()};
      messages[i].msg_hdr.msg_iov = &parts[i];
      messages[i].msg_hdr.msg_iovlen = 1;
    }
    const int got = ::recvmmsg(member.fd.get(), messages.data(), kBatch, MSG_DONTWAIT, nullptr);
    if (got <= 0) break;
    const auto count = static_cast<size_t>(got);
    for (size_t i = 0; i < count; ++i) packets_[i].resize(messages[i].msg_len);
    if (const auto& meddle = shared_->options.multicast.meddle) {
      packets_.resize(count);
      meddle(packets_);
      for (const auto& packet : packets_) member.reassembly.add(packet);
    } else {
      for (size_t i = 0; i < count; ++i) member.reassembly.add(packets_[i]);
    }
    take(member, *layer, false);
    if (count < kBatch) break;
  }
  const PacketCounts counts = member.reassembly.take_counts();
  if (counts.got + counts.missed > 0) layer->count_packets(counts.got, counts.missed);
}

}  // namespace snow::exchange
