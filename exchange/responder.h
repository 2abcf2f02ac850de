// The answering end of one connection: buffers that are used again, and each kind of answer. One
// thread.
#pragma once

#include <span>

#include "exchange/page_body.h"
#include "exchange/shared.h"
#include "exchange/wire.h"
#include "peer/connection.h"

namespace snow::exchange {

class Responder {
 public:
  Responder(peer::Connection& connection, Shared& shared)
      : connection_(connection),
        shared_(shared),
        host_(shared.hosts.number(connection.host())),
        pages_(kMaxRunPages * kPageBytes) {}

  // Room for the bytes of a run.
  std::span<std::byte> room(uint32_t pages) {
    return std::span(pages_).first(size_t{pages} * kPageBytes);
  }
  // PAGES with what lies in room(run.count), which it changes. Answers how many bytes went out, and
  // how many pages that are not zeros.
  struct Sent {
    uint64_t bytes = 0, pages = 0;
  };
  Result<Sent> pages(const wire::Fetch& fetch, Run run, bool last);
  // PAGES of zeros only.
  Result<void> zeros(const wire::Fetch& fetch, Run run, bool last);
  Result<void> notice(wire::Type type, const wire::Fetch& fetch, Run run, Nanos wait, bool last);
  // Any message: encodes and sends it.
  template <class Message>
  Result<void> message(wire::Type type, const Message& content) {
    wire::encode(content, out_);
    return send(type);
  }
  Result<void> map(const wire::Zeros& zeros, wire::Bytes bits) {
    wire::encode(zeros, bits, out_);
    return send(wire::Type::zeros);
  }
  [[nodiscard]] HostNumber host() const { return host_; }

 private:
  Result<void> send(wire::Type type);
  Result<void> send_pages(const wire::Fetch& fetch, wire::Pages& pages);

  peer::Connection& connection_;
  Shared& shared_;
  const HostNumber host_;  // who asks
  wire::Buffer pages_, out_, scratch_;
  Packer packer_;
};

}  // namespace snow::exchange
