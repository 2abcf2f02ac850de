// Streams as their users see them.
#include <algorithm>
#include <chrono>

#include "guestlink/session.h"

namespace snow {

using channel::Fields;
using channel::Type;

Result<void> LinkSession::write(StreamState& stream, std::string_view bytes) {
  Lock lock(mutex_);
  while (!bytes.empty()) {
    changed_.wait(lock, [&] {
      return stream.outcome ||
             (stream.send_credit > 0 && !held_ && queued_bytes_ < kQueueDataBytes);
    });
    if (stream.outcome && !*stream.outcome) {
      return tl::unexpected(stream.outcome->error());
    }
    if (stream.outcome || stream.sent_eof) {
      return fail(Code::wrong_state, "{}: takes no more input", stream.what);
    }
    const size_t part =
        std::min({bytes.size(), kChunkBytes, static_cast<size_t>(stream.send_credit)});
    stream.send_credit -= part;
    push(channel::encode_frame(
        {Type::data, stream.number, std::string(1, '\0').append(bytes.substr(0, part))}));
    flush();
    bytes.remove_prefix(part);
  }
  return {};
}

Result<void> LinkSession::write_eof(StreamState& stream) {
  const Lock lock(mutex_);
  if (stream.outcome || stream.sent_eof) return {};
  stream.sent_eof = true;
  if (!send(Type::eof, stream.number, std::string(1, '\0'))) {
    return fail(Code::no_agent, "{}: the guest's agent does not read its channel", stream.what);
  }
  return {};
}

std::optional<GuestStream::Chunk> LinkSession::read(StreamState& stream, int timeout_ms) {
  Lock lock(mutex_);
  const auto ready = [&] { return !stream.runs.empty() || stream.outcome; };
  if (timeout_ms < 0) {
    changed_.wait(lock, ready);
  } else if (!changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), ready)) {
    return std::nullopt;
  }
  GuestStream::Chunk chunk;
  if (stream.runs.empty()) {
    chunk.end = true;
    return chunk;
  }
  const StreamState::Run run = stream.runs.front();
  stream.runs.pop_front();
  chunk.fd = static_cast<int>(run.fd);
  chunk.bytes = stream.received.substr(stream.taken, run.bytes);
  stream.taken += run.bytes;
  if (stream.taken == stream.received.size() || stream.taken >= channel::kWindowBytes) {
    stream.received.erase(0, stream.taken);
    stream.taken = 0;
  }
  stream.owed += run.bytes;
  if (!stream.outcome && stream.owed >= kCreditStep) flush();
  return chunk;
}

Result<int> LinkSession::outcome(StreamState& stream) {
  const Lock lock(mutex_);
  if (!stream.outcome) return fail(Code::wrong_state, "{}: has not ended yet", stream.what);
  return *stream.outcome;
}

void LinkSession::tell(StreamState& stream, Type type, const Fields& fields) {
  const Lock lock(mutex_);
  if (!stream.outcome) send(type, stream.number, fields);
}

void LinkSession::close(StreamState& stream) {
  const Lock lock(mutex_);
  if (stream.outcome) return;
  send(Type::closed, stream.number, Fields{{"code", "ok"}, {"message", "the host ended it"}});
  end(stream, fail(Code::wrong_state, "{}: was ended by the host", stream.what));
}

namespace {

class SessionStream : public GuestStream {
 public:
  SessionStream(std::shared_ptr<LinkSession> session, std::shared_ptr<StreamState> state)
      : session_(std::move(session)), state_(std::move(state)) {}
  SessionStream(const SessionStream&) = delete;
  SessionStream& operator=(const SessionStream&) = delete;
  ~SessionStream() override { session_->close(*state_); }

  Result<void> write(std::string_view bytes) override { return session_->write(*state_, bytes); }
  Result<void> write_eof() override { return session_->write_eof(*state_); }
  std::optional<Chunk> read(int timeout_ms) override { return session_->read(*state_, timeout_ms); }
  Result<int> outcome() override { return session_->outcome(*state_); }
  void send_signal(int number) override {
    session_->tell(*state_, Type::signal, Fields{{"signal", std::to_string(number)}});
  }
  void resize(unsigned rows, unsigned columns) override {
    session_->tell(*state_, Type::resize,
                   Fields{{"rows", std::to_string(rows)}, {"columns", std::to_string(columns)}});
  }
  void cancel() override { session_->close(*state_); }

 private:
  const std::shared_ptr<LinkSession> session_;
  const std::shared_ptr<StreamState> state_;
};

}  // namespace

std::unique_ptr<GuestStream> make_stream(std::shared_ptr<LinkSession> session,
                                         std::shared_ptr<StreamState> state) {
  return std::make_unique<SessionStream>(std::move(session), std::move(state));
}

}  // namespace snow
