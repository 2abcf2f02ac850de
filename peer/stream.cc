#include "peer/stream.h"

#include <exception>

namespace snow::peer {
namespace {

constexpr std::string_view kService = "stream";
constexpr int kOpenMs = 30'000;    // for the opener to say what it wants
constexpr int kLingerMs = 10'000;  // for the opener to read the rest and close

}  // namespace

Stream::~Stream() {
  if (connection_ != nullptr && lease_.operator->() != nullptr) lease_.drop();
}

Result<void> Stream::send(uint8_t type, std::span<const std::byte> first,
                          std::span<const std::byte> second, int timeout_ms) {
  if (finished_ || type < kFirstFree) {
    return fail(Code::internal, "{}: a frame of type {} where none may be sent",
                connection_->name(), type);
  }
  return connection_->send(type, first, second, timeout_ms);
}

Result<void> Stream::finish(int timeout_ms) {
  if (finished_) return {};
  finished_ = true;
  return connection_->send(kEnd, {}, timeout_ms);
}

Result<uint8_t> Stream::receive_into(std::vector<std::byte>& payload, int timeout_ms) {
  return connection_->receive_into(payload, timeout_ms);
}

Result<Frame> Stream::receive(int timeout_ms) { return connection_->receive(timeout_ms); }

void Stream::interrupt() { connection_->interrupt(); }

Result<void> Stream::accept(const Message& answer, int timeout_ms) {
  accepted_by_us_ = true;
  return connection_->send(kAnswer, encode_answer(answer.json), answer.bytes, timeout_ms);
}

Result<Stream> open_stream(Pool& pool, const std::string& host, std::string_view method,
                           const Message& argument, int timeout_ms) {
  if (!is_plain_name(method)) return fail(Code::invalid, "method '{}': no such name", method);
  const Deadline deadline(timeout_ms);
  SNOW_ASSIGN(Lease lease, pool.take_new(host, kService, deadline.left_ms()));
  Stream stream(std::move(lease));
  Connection& connection = *stream.connection_;
  SNOW_TRY(connection.send(kCall, encode_call(method, argument.json), argument.bytes,
                           deadline.left_ms()));
  SNOW_ASSIGN(const Frame frame, connection.receive(deadline.left_ms()));
  if (frame.type != kAnswer) {
    return fail(Code::corrupt, "{}: {}: a frame of type {} for an answer", method,
                connection.name(), frame.type);
  }
  SNOW_ASSIGN(stream.accepted_, decode_answer(frame.payload));
  connection.allow_duplex();
  return stream;
}

void Streams::add(std::string name, Method method) {
  methods_.insert_or_assign(std::move(name), std::move(method));
}

Server::Service Streams::service() const {
  return [this](Connection& connection) { serve(connection); };
}

Result<void> Streams::run(Connection& connection, Stream& stream) const {
  SNOW_ASSIGN(const Frame frame, connection.receive(kOpenMs));
  if (frame.type != kCall) return fail(Code::corrupt, "a stream begins with a call");
  SNOW_ASSIGN(const Request asked, decode_call(frame.payload));
  const auto found = methods_.find(asked.method);
  if (found == methods_.end()) {
    return fail(Code::not_found, "stream '{}': this host has none; is it an older version?",
                asked.method);
  }
  connection.allow_duplex();
  try {
    SNOW_TRY(found->second(connection.host(), asked.argument, stream));
  } catch (const std::exception& error) {
    return fail(Code::invalid, "stream '{}': {}", asked.method, error.what());
  }
  if (!stream.accepted_by_us_) SNOW_TRY(stream.accept({}, kLingerMs));
  return stream.finish(kLingerMs);
}

void Streams::serve(Connection& connection) const {
  Stream stream(connection);
  const auto done = run(connection, stream);
  if (!done && (connection.broken() || !connection.send_error(done.error(), kLingerMs))) return;
  // Closed at once, what the opener sends in this moment would reset the connection and take with
  // it what the opener has not read yet.
  const Deadline deadline(kLingerMs);
  std::vector<std::byte> rest;
  while (deadline.left_ms() > 0 && connection.receive_into(rest, deadline.left_ms())) {
  }
}

}  // namespace snow::peer
