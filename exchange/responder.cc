#include "exchange/responder.h"

#include <bit>

namespace snow::exchange {
namespace {

// One that does not take its answer is cut off. It is long: a slow link may be full of bulk.
constexpr int kSendMs = 30'000;

}  // namespace

Result<void> Responder::send(wire::Type type) {
  return connection_.send(static_cast<uint8_t>(type), out_, kSendMs);
}

Result<void> Responder::send_pages(const wire::Fetch& fetch, wire::Pages& pages) {
  std::array<std::byte, wire::kPagesHeadBytes> head{};
  wire::encode_head(pages, fetch.image, head);
  shared_.queued_bytes.fetch_add(pages.body.size(), std::memory_order_relaxed);
  auto sent = connection_.send(static_cast<uint8_t>(wire::Type::pages), head, pages.body, kSendMs);
  shared_.queued_bytes.fetch_sub(pages.body.size(), std::memory_order_relaxed);
  return sent;
}

Result<Responder::Sent> Responder::pages(const wire::Fetch& fetch, Run run, bool last) {
  wire::Pages pages;
  pages.tag = fetch.tag;
  pages.last = last;
  pages.run = run;
  pages.zeros = squeeze_zeros(room(run.count));
  const uint32_t count = wire::pages_in_body(pages);
  const wire::Bytes raw = room(count);
  pages.body = packer_.pack(raw, scratch_);
  pages.lz4 = pages.body.data() != raw.data();
  SNOW_TRY(send_pages(fetch, pages));
  return Sent{pages.body.size() + wire::kPagesHeadBytes, count};
}

Result<void> Responder::zeros(const wire::Fetch& fetch, Run run, bool last) {
  wire::Pages pages;
  pages.tag = fetch.tag;
  pages.last = last;
  pages.run = run;
  pages.zeros = run.count >= 64 ? ~uint64_t{0} : (uint64_t{1} << run.count) - 1;
  return send_pages(fetch, pages);
}

Result<void> Responder::notice(wire::Type type, const wire::Fetch& fetch, Run run, Nanos wait,
                               bool last) {
  wire::Notice notice;
  notice.tag = fetch.tag;
  notice.last = last;
  notice.run = run;
  notice.wait_us = static_cast<uint32_t>(wait / kMicrosecond);
  return message(type, notice);
}

}  // namespace snow::exchange
