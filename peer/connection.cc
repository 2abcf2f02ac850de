#include "peer/connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace snow::peer {
namespace {

constexpr size_t kReadAheadBytes = 16 * 1024;
// A length that was only claimed makes no memory: a payload grows by this much as it arrives.
constexpr size_t kGrowBytes = size_t{1} << 20;
constexpr int kLingerMs = 500;

std::span<const std::byte> as_bytes(const auto& container) {
  return std::as_bytes(std::span(container));
}

}  // namespace

Connection::Connection(Fd fd) : socket_(std::move(fd)), in_(kReadAheadBytes) {
  name_ = fmt::format("peer at {}", to_text(socket_.remote()));
}

Result<std::unique_ptr<Connection>> Connection::connect(const Credentials& us,
                                                        const Address& address,
                                                        const std::string& host,
                                                        std::string_view service, int timeout_ms) {
  const Deadline deadline(timeout_ms);
  const std::string who = host.empty() ? fmt::format("host at {}", to_text(address))
                                       : fmt::format("host '{}' at {}", host, to_text(address));
  if (!is_plain_name(service)) return fail(Code::invalid, "service '{}': no such name", service);
  if (us.plain()) {
    // Before a byte goes out; the local end is checked once it is known.
    auto allowed = us.check_plain({"127.0.0.1", 0}, address);
    if (!allowed) return within(who, std::move(allowed).error());
  }
  auto fd = connect_tcp(address, deadline);
  if (!fd) return within(who, std::move(fd).error());
  std::unique_ptr<Connection> made(new Connection(*std::move(fd)));
  made->name_ = who;
  SNOW_TRY(made->start_tls(us, false, deadline));
  const std::string shown = made->host_;
  if (!host.empty() && !us.plain() && shown != host) {
    return made->broken_by(
        {Code::denied, fmt::format("it is host '{}', says its certificate", shown)});
  }
  SNOW_TRY(
      made->write(kHello, encode_hello({kVersion, us.host(), std::string(service)}), {}, deadline));
  SNOW_TRY(made->read_hello(service, deadline));
  if (!host.empty() && made->host_ != host) {
    return made->broken_by({Code::denied, fmt::format("it is host '{}', it says", made->host_)});
  }
  made->limit_ = kMaxFrameBytes;
  made->awaiting_.store(false, std::memory_order_relaxed);
  return made;
}

Result<void> Connection::start_tls(const Credentials& us, bool server, const Deadline& deadline) {
  if (us.plain()) {
    auto allowed = us.check_plain(socket_.local(), socket_.remote());
    if (!allowed) return broken_by(std::move(allowed).error());
    return {};
  }
  auto tls = Tls::make(server ? us.server_context() : us.client_context(), server, socket_);
  if (!tls) return broken_by(std::move(tls).error());
  tls_ = *std::move(tls);
  if (auto done = tls_->handshake(deadline); !done) return broken_by(std::move(done).error());
  host_ = tls_->peer_name();
  authenticated_ = !host_.empty();
  return {};
}

// The peer's hello into host_ and service_. With TLS the certificate has said who it is, and the
// hello must agree.
Result<void> Connection::read_hello(std::string_view wanted_service, const Deadline& deadline) {
  std::vector<std::byte> payload;
  SNOW_ASSIGN(const uint8_t type, read(payload, deadline));
  if (type == kError) return within(name_, decode_error(payload));
  if (type != kHello) return broken_by({Code::corrupt, "the first frame is no hello"});
  auto hello = decode_hello(payload);
  if (!hello) return broken_by(std::move(hello).error());
  if (hello->version != kVersion) {
    return broken_by(
        {Code::wrong_state,
         fmt::format("it speaks version {} of the peer protocol, this host version {}; "
                     "upgrade the older of the two",
                     hello->version, kVersion)});
  }
  if (!wanted_service.empty() && hello->service != wanted_service) {
    return broken_by({Code::corrupt, fmt::format("it answers for service '{}'", hello->service)});
  }
  if (tls_ && hello->host != host_) {
    return broken_by({Code::denied, fmt::format("it calls itself '{}', its certificate says '{}'",
                                                hello->host, host_)});
  }
  host_ = std::move(hello->host);
  service_ = std::move(hello->service);
  if (!tls_) authenticated_ = !host_.empty();
  return {};
}

Result<void> Connection::greet(Connection& connection, const Credentials& us,
                               const Deadline& deadline) {
  SNOW_TRY(connection.start_tls(us, true, deadline));
  SNOW_TRY(connection.read_hello("", deadline));
  if (connection.authenticated_) {
    connection.name_ =
        fmt::format("host '{}' at {}", connection.host_, to_text(connection.socket_.remote()));
  }
  return {};
}

Result<void> Connection::welcome(const Credentials& us, const Deadline& deadline) {
  SNOW_TRY(write(kHello, encode_hello({kVersion, us.host(), service_}), {}, deadline));
  awaiting_.store(false, std::memory_order_relaxed);
  limit_ = authenticated_ ? kMaxFrameBytes : kMaxStrangerBytes;
  return {};
}

void Connection::refuse(const Error& error) {
  const Deadline deadline(kLingerMs);
  broken_ = true;
  // After a failed handshake TLS has sent its alert, and there is no session to say more in. A peer
  // that is set to plain can read a plain frame.
  if (tls_ && !tls_->peer_speaks_tls()) tls_.reset();
  if (!tls_ || tls_->established()) {
    if (!transmit(kError, encode_error(error), {}, deadline)) return;
  }
  // Closing with bytes unread would reset the connection and take the reason with it.
  ::shutdown(socket_.fd(), SHUT_WR);
  std::vector<std::byte> rest(kReadAheadBytes);
  while (socket_.read_some(rest, deadline)) {
  }
}

Result<void> Connection::send(uint8_t type, std::span<const std::byte> first,
                              std::span<const std::byte> second, int timeout_ms) {
  return write(type, first, second, Deadline(timeout_ms));
}

Result<void> Connection::send_error(const Error& error, int timeout_ms) {
  return send(kError, encode_error(error), timeout_ms);
}

Result<void> Connection::write(uint8_t type, std::span<const std::byte> first,
                               std::span<const std::byte> second, const Deadline& deadline) {
  if (broken()) return fail(Code::unavailable, "{}: the connection is broken", name_);
  const size_t size = first.size() + second.size();
  if (size > kMaxFrameBytes) {
    return fail(Code::invalid, "{}: a frame of {} bytes, where {} are the limit", name_, size,
                kMaxFrameBytes);
  }
  if (auto done = transmit(type, first, second, deadline); !done) {
    return broken_by(std::move(done).error());
  }
  awaiting_.store(true, std::memory_order_relaxed);
  return {};
}

Result<void> Connection::transmit(uint8_t type, std::span<const std::byte> first,
                                  std::span<const std::byte> second, const Deadline& deadline) {
  const auto header = encode_header(type, first.size() + second.size());
  if (tls_) {
    const std::array<std::span<const std::byte>, 3> parts = {header, first, second};
    return tls_->write_all(parts, deadline);
  }
  const auto part = [](std::span<const std::byte> bytes) {
    return iovec{const_cast<std::byte*>(bytes.data()), bytes.size()};
  };
  std::array<iovec, 3> parts = {part(header), part(first), part(second)};
  return socket_.write_all(parts, deadline);
}

Result<Frame> Connection::receive(int timeout_ms) {
  Frame frame;
  SNOW_ASSIGN(frame.type, receive_into(frame.payload, timeout_ms));
  return frame;
}

Result<uint8_t> Connection::receive_into(std::vector<std::byte>& payload, int timeout_ms) {
  auto type = read(payload, Deadline(timeout_ms));
  if (type && *type == kError) return tl::unexpected<Error>(decode_error(payload));
  return type;
}

Result<uint8_t> Connection::read(std::vector<std::byte>& payload, const Deadline& deadline) {
  if (broken()) return fail(Code::unavailable, "{}: the connection is broken", name_);
  Header header;
  if (auto got = read_header(header, deadline); !got) return broken_by(std::move(got).error());
  if (auto got = read_payload(payload, header.payload_bytes, deadline); !got) {
    return broken_by(std::move(got).error());
  }
  awaiting_.store(false, std::memory_order_relaxed);
  return header.type;
}

Result<void> Connection::read_header(Header& header, const Deadline& deadline) {
  if (in_begin_ == in_end_) in_begin_ = in_end_ = 0;
  while (in_end_ - in_begin_ < kHeaderBytes) {
    if (in_.size() - in_begin_ < kHeaderBytes) {
      std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
      in_end_ -= in_begin_;
      in_begin_ = 0;
    }
    SNOW_ASSIGN(const size_t got, read_some(std::span(in_).subspan(in_end_), deadline));
    in_end_ += got;
  }
  const std::span<const std::byte> rest(in_.data() + in_begin_, kHeaderBytes);
  auto decoded = decode_header(rest.first<kHeaderBytes>(), limit_);
  if (!decoded) {
    const bool tls_record = !tls_ && (rest[0] == std::byte{0x15} || rest[0] == std::byte{0x16}) &&
                            rest[1] == std::byte{3};
    if (tls_record) return fail(Code::denied, "it speaks TLS, this host is set to plain");
    return tl::unexpected<Error>(std::move(decoded).error());
  }
  header = *decoded;
  in_begin_ += kHeaderBytes;
  return {};
}

Result<void> Connection::read_payload(std::vector<std::byte>& payload, size_t size,
                                      const Deadline& deadline) {
  const size_t ready = std::min(size, in_end_ - in_begin_);
  if (payload.size() > size || size <= kGrowBytes) payload.resize(size);
  if (payload.size() < ready) payload.resize(ready);
  if (ready > 0) std::memcpy(payload.data(), in_.data() + in_begin_, ready);
  in_begin_ += ready;
  for (size_t have = ready; have < size;) {
    if (have == payload.size()) payload.resize(std::min(size, have + kGrowBytes));
    SNOW_ASSIGN(const size_t got, read_some(std::span(payload).subspan(have), deadline));
    have += got;
  }
  return {};
}

Result<size_t> Connection::read_some(std::span<std::byte> into, const Deadline& deadline) {
  return tls_ ? tls_->read_some(into, deadline) : socket_.read_some(into, deadline);
}

Result<bool> Connection::wait(int timeout_ms) {
  if (broken()) return fail(Code::unavailable, "{}: the connection is broken", name_);
  if (in_begin_ != in_end_ || (tls_ && !tls_->idle())) return true;
  auto ready = socket_.wait_readable(Deadline(timeout_ms));
  if (!ready) return broken_by(std::move(ready).error());
  return *ready;
}

bool Connection::idle_and_alive() const {
  return !broken() && in_begin_ == in_end_ && (!tls_ || tls_->idle()) && socket_.quiet();
}

void Connection::allow_duplex() {
  if (tls_) tls_->allow_duplex();
}

void Connection::interrupt() {
  broken_ = true;
  socket_.interrupt();
}

tl::unexpected<Error> Connection::broken_by(Error error) {
  broken_ = true;
  return within(name_, std::move(error));
}

}  // namespace snow::peer
