#include "api/forward_request.h"

#include <algorithm>

#include "api/forward_stream.h"
#include "peer/deadline.h"

namespace snow::forward {
namespace {

constexpr int kTurnMs = 500;
constexpr int kFrameMs = 30'000;  // for a frame that has begun to arrive
constexpr int kSendMs = 10'000;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

Passed::Passed(std::shared_ptr<Neighbours> neighbours, std::string host, peer::Lease lease)
    : neighbours_(std::move(neighbours)),
      host_(std::move(host)),
      host_name_(neighbours_->name_of(host_)),
      lease_(std::move(lease)) {}

Passed::~Passed() {
  if (!whole_) lease_.drop();
}

Result<std::unique_ptr<Passed>> Passed::send(std::shared_ptr<Neighbours> neighbours,
                                             const std::string& host, const Call& call, bool upload,
                                             int timeout_ms) {
  const peer::Deadline deadline(timeout_ms);
  const auto head = encode_request(call, upload);
  const auto failed = [&](const Error& why) {
    return tl::unexpected<Error>(Error{
        Code::unavailable,
        fmt::format("host '{}': {}; it was not asked", neighbours->name_of(host), why.message)});
  };
  auto lease = neighbours->pool().take(host, kService, deadline.left_ms());
  if (!lease) return failed(lease.error());
  auto sent = (*lease)->send(kRequest, head, bytes_of(call.body), deadline.left_ms());
  if (!sent && lease->reused() && sent.error().code == Code::unavailable) {
    // It had been closed at the other end: what was not sent whole was not carried out.
    lease->drop();
    lease = neighbours->pool().take_new(host, kService, deadline.left_ms());
    if (!lease) return failed(lease.error());
    sent = (*lease)->send(kRequest, head, bytes_of(call.body), deadline.left_ms());
  }
  if (!sent) return failed(sent.error());
  (*lease)->set_limit(kMaxReplyFrame);
  return std::unique_ptr<Passed>(new Passed(std::move(neighbours), host, *std::move(lease)));
}

Result<void> Passed::is_live() const {
  const auto live = neighbours_->live();
  if (std::find(live.begin(), live.end(), host_) != live.end()) return {};
  return fail(Code::unavailable, "host '{}': is gone; whether it did what was asked is not known",
              host_name_);
}

tl::unexpected<Error> Passed::lost(const Error& why) const {
  return tl::unexpected<Error>(Error{
      Code::unavailable, fmt::format("host '{}': {}; whether it did what was asked is not known",
                                     host_name_, why.message)});
}

Result<uint8_t> Passed::next(int timeout_ms, const std::atomic<bool>& stopping,
                             std::vector<std::byte>& payload) {
  const peer::Deadline deadline(timeout_ms);
  for (;;) {
    const int left_ms = deadline.left_ms();
    const auto ready = lease_->wait(left_ms < 0 ? kTurnMs : std::min(left_ms, kTurnMs));
    if (!ready) return lost(ready.error());
    if (*ready) break;
    if (deadline.left_ms() == 0) {
      return fail(Code::timed_out, "host '{}': no answer within {} ms", host_name_, timeout_ms);
    }
    if (stopping) return fail(Code::unavailable, "snowd is stopping; try again in a moment");
    SNOW_TRY(is_live());
  }
  const int left_ms = deadline.left_ms();
  auto type = lease_->receive_into(payload, left_ms < 0 ? kFrameMs : std::max(left_ms, 1));
  // An error that the other side sent is passed on as it is.
  if (!type && lease_->broken()) return lost(type.error());
  return type;
}

Result<Head> Passed::reply(int timeout_ms, const std::atomic<bool>& stopping) {
  std::vector<std::byte> payload;
  SNOW_ASSIGN(const uint8_t type, next(timeout_ms, stopping, payload));
  if (type != kReply) {
    return fail(Code::corrupt, "host '{}': a frame of type {} for a reply", host_name_, type);
  }
  auto head = decode_reply(payload);
  if (!head) return within("host '" + host_name_ + "'", head.error());
  whole_ = head->kind == Kind::whole;
  return head;
}

Result<std::string> Passed::piece(int timeout_ms, const std::atomic<bool>& stopping) {
  if (whole_) return std::string();
  std::vector<std::byte> payload;
  SNOW_ASSIGN(const uint8_t type, next(timeout_ms, stopping, payload));
  if (type == peer::kEnd) {
    whole_ = true;
    return std::string();
  }
  if (type != kPiece || payload.empty()) {
    return fail(Code::corrupt, "host '{}': a frame of type {} amid a stream", host_name_, type);
  }
  return std::string(reinterpret_cast<const char*>(payload.data()), payload.size());
}

bool Passed::answered() {
  const auto ready = lease_->wait(0);
  return !ready || *ready;
}

Result<void> Passed::write(std::string_view bytes, const std::atomic<bool>& stopping) {
  while (!bytes.empty()) {
    const std::string_view piece = bytes.substr(0, kPieceBytes);
    if (stopping) return fail(Code::unavailable, "snowd is stopping; try again in a moment");
    // As fast as the guest takes it.
    if (auto sent = lease_->send(kPiece, bytes_of(piece), peer::kForever); !sent) {
      return lost(sent.error());
    }
    bytes.remove_prefix(piece.size());
  }
  return {};
}

Result<void> Passed::end() {
  if (auto sent = lease_->send(peer::kEnd, {}, kSendMs); !sent) return lost(sent.error());
  return {};
}

Result<Reply> take_reply(std::shared_ptr<Passed> passed, const std::atomic<bool>& stopping) {
  SNOW_ASSIGN(Head head, passed->reply(-1, stopping));
  Reply reply;
  reply.status = head.status;
  reply.type = head.type;
  switch (head.kind) {
    case Kind::whole:
      reply.body = std::move(head.body);
      break;
    case Kind::stream: {
      // The first piece is awaited here: an error before it is a proper one.
      auto first = std::make_shared<std::string>();
      SNOW_ASSIGN(*first, passed->piece(-1, stopping));
      reply.more = [passed, first, &stopping]() -> Result<std::string> {
        if (!first->empty()) return std::exchange(*first, std::string());
        return passed->piece(-1, stopping);
      };
      break;
    }
    case Kind::upgraded:
      reply.upgraded = [passed](int fd, std::string early) {
        relay_upgraded(fd, std::move(early), passed->connection(),
                       [passed] { return passed->is_live(); });
      };
      break;
    case Kind::upload:
      return fail(Code::corrupt, "host '{}': waits for an upload that there is none of",
                  passed->host_name());
  }
  return reply;
}

}  // namespace snow::forward
