// Output, the agent's presence, freeze and thaw. What comes in is in session_input.cc, what streams
// and calls ask for in stream.cc and call.cc.
#include "guestlink/session.h"

#include <sys/socket.h>

#include <algorithm>
#include <chrono>

#include "base/file.h"
#include "guestlink/wire_text.h"

namespace snow {

using channel::Fields;
using channel::Type;

template <class Condition>
bool LinkSession::wait(Lock& lock, int timeout_ms, Condition condition) {
  if (timeout_ms < 0) {
    changed_.wait(lock, condition);
    return true;
  }
  return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), condition);
}

void LinkSession::attach(std::shared_ptr<Wire> wire) {
  const Lock lock(mutex_);
  // A stream of an earlier daemon may still be open in the guest: a number out of the blue does not
  // meet it.
  const auto random = random_bytes(4);
  for (const std::byte byte : random)
    next_stream_ = next_stream_ << 8 | std::to_integer<uint32_t>(byte);
  next_stream_ &= 0x7ffffffe;
  wire_ = std::move(wire);
  wire_->belong_to(shared_from_this());
  LinkLoop::instance().add(wire_);
  if (!held_) {
    ++asks_;
    send(Type::ask, 0, Fields{});
  }
}

void LinkSession::shut_down() {
  std::shared_ptr<Caller> caller;  // let go of without the mutex: callbacks own what they refer to
  const Lock lock(mutex_);
  caller = std::exchange(caller_, nullptr);
  if (caller) caller->dead = true;
  closed_ = true;
  if (wire_) LinkLoop::instance().remove(*wire_);
  wire_.reset();
  end_all({Code::guest_failed, "the VM is gone"});
}

void LinkSession::take_wire(LinkSession& from) {
  const std::scoped_lock lock(mutex_, from.mutex_);
  if (wire_) LinkLoop::instance().remove(*wire_);
  if (caller_) caller_->dead = true;
  wire_ = std::move(from.wire_);
  caller_ = std::exchange(from.caller_, std::move(caller_));
  closed_ = std::exchange(from.closed_, true);
  from.end_all({Code::wrong_state, "the VM went on in another process"});
  fresh_wire_ = true;
  out_sent_ = 0;          // what was sent of a frame is lost with the old wire,
  resume_begun_ = false;  // and so is an answer
  if (wire_) {
    wire_->belong_to(shared_from_this());
    flush();
  }
  if (closed_) end_all({Code::guest_failed, "the VM's QEMU ended"});
}

bool LinkSession::has_agent() {
  const Lock lock(mutex_);
  return hello_ && !closed_;
}

Error LinkSession::no_agent(std::string_view what) const {
  if (closed_) return {Code::guest_failed, fmt::format("{}: the VM's QEMU ended", what)};
  if (!complaint_.empty()) return {Code::no_agent, fmt::format("{}: {}", what, complaint_)};
  return {Code::no_agent,
          fmt::format("{}; is snow-agent in the image (docs/guest.md), and is the guest alive? "
                      "`snow logs` shows its console",
                      what)};
}

Result<void> LinkSession::wait_for_agent(int timeout_ms) {
  Lock lock(mutex_);
  wait(lock, timeout_ms, [&] { return hello_ || closed_ || !complaint_.empty(); });
  if (hello_ && !closed_) return {};
  return tl::unexpected(
      no_agent(fmt::format("the guest's agent did not answer within {} ms", timeout_ms)));
}

Result<Fields> LinkSession::prepare(int timeout_ms) {
  Lock lock(mutex_);
  if (!hello_ || closed_) return tl::unexpected(no_agent("the guest's agent has not answered yet"));
  if (held_) return fail(Code::wrong_state, "the guest is being frozen already");
  prepared_.reset();
  if (!send(Type::prepare, 0, Fields{{"reason", "fork"}})) {
    return tl::unexpected(no_agent("the guest's agent does not read its channel"));
  }
  ++prepares_;
  held_ = true;
  const bool answered = wait(lock, timeout_ms, [&] { return prepared_ || closed_; });
  if (!answered || !prepared_) {
    return tl::unexpected(
        no_agent(fmt::format("the guest's agent did not stop it within {} ms", timeout_ms)));
  }
  return *std::exchange(prepared_, std::nullopt);
}

void LinkSession::begin_resume(const std::string& payload) {
  const Lock lock(mutex_);
  ready_.reset();
  ++resumes_;
  resume_begun_ = true;
  release(channel::encode_frame({Type::resume, 0, payload}));
}

bool LinkSession::resume_begun() {
  const Lock lock(mutex_);
  return resume_begun_;
}

Result<ReadyReport> LinkSession::finish_resume(int timeout_ms) {
  Lock lock(mutex_);
  resume_begun_ = false;
  const bool answered = wait(lock, timeout_ms, [&] { return ready_ || closed_; });
  if (!answered || !ready_) {
    return tl::unexpected(no_agent(fmt::format(
        "the guest's agent did not say within {} ms that the guest is ready", timeout_ms)));
  }
  return ReadyReport{*std::exchange(ready_, std::nullopt)};
}

Result<std::shared_ptr<StreamState>> LinkSession::open(const Fields& fields, std::string what) {
  const Lock lock(mutex_);
  if (!hello_ || closed_) return tl::unexpected(no_agent("the guest's agent has not answered yet"));
  if (streams_.size() >= kStreams) {
    return fail(Code::no_room, "{}: {} commands and files are open in this VM already; end some",
                what, kStreams);
  }
  do {
    next_stream_ = (next_stream_ + 2) & 0x7ffffffe;
  } while (next_stream_ == 0 || streams_.contains(next_stream_));
  auto stream = std::make_shared<StreamState>();
  stream->number = next_stream_;
  stream->what = std::move(what);
  stream->is_exec = channel::field(fields, "kind") == "exec";
  if (!send(Type::open, stream->number, fields)) {
    return tl::unexpected(no_agent("the guest's agent does not read its channel"));
  }
  streams_[stream->number] = stream;
  return stream;
}

uint64_t LinkSession::dropped() {
  const Lock lock(mutex_);
  return dropped_;
}

bool LinkSession::send(Type type, uint32_t stream, const Fields& fields) {
  return send(type, stream, channel::encode_fields(fields));
}

// False: the guest has let too much pile up.
bool LinkSession::send(Type type, uint32_t stream, std::string payload) {
  if (closed_) return false;
  std::string frame = channel::encode_frame({type, stream, std::move(payload)});
  if (queued_bytes_ + frame.size() > kQueueBytes) {
    ++dropped_;
    return false;
  }
  if (held_) {
    queued_bytes_ += frame.size();
    deferred_.push_back(std::move(frame));
  } else {
    push(std::move(frame));
    flush();
  }
  return true;
}

void LinkSession::push(std::string frame) {
  queued_bytes_ += frame.size();
  out_.push_back(std::move(frame));
}

// Ends the hold: `first` goes before all that waited.
void LinkSession::release(std::string first) {
  held_ = false;
  thaw_ = false;
  if (!first.empty()) push(std::move(first));
  for (std::string& frame : deferred_) out_.push_back(std::move(frame));
  deferred_.clear();
  flush();
  changed_.notify_all();
}

void LinkSession::flush() {
  bool full = false;
  do {
    while (wire_ && !out_.empty()) {
      if (fresh_wire_) {
        out_.front().insert(out_.front().begin(), '\0');
        ++queued_bytes_;
        fresh_wire_ = false;
      }
      const std::string& frame = out_.front();
      const ssize_t sent = ::send(wire_->fd(), frame.data() + out_sent_, frame.size() - out_sent_,
                                  MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0) {  // full; or over, which the loop notices
        full = true;
        break;
      }
      out_sent_ += static_cast<size_t>(sent);
      if (out_sent_ == frame.size()) {
        queued_bytes_ -= frame.size();
        out_.pop_front();
        out_sent_ = 0;
      }
    }
  } while (pump() && !full);
  if (wire_) LinkLoop::instance().watch_output(*wire_, !out_.empty());
}

// Queues what may be sent now: credit for what has been read, and the payloads of answers. True:
// there was something. A guest that does not read gets no more credit, so that it cannot send for
// ever.
bool LinkSession::pump() {
  if (held_) return false;
  bool any = false;
  for (const auto& [number, stream] : streams_) {
    any |= pump_credit(number, stream->owed, stream->allowance);
  }
  std::vector<std::shared_ptr<CallState>> done;
  for (const auto& [number, call] : calls_) {
    any |= pump_credit(number, call->owed, call->allowance);
    if (!call->answered) continue;
    any |= pump_answer(*call);
    if (call->out_at == call->out.size()) done.push_back(call);
  }
  for (const auto& call : done) {
    push(channel::encode_frame({Type::eof, call->number, std::string(1, '\1')}));
    erase(*call);
  }
  return any || !done.empty();
}

bool LinkSession::pump_credit(uint32_t number, uint64_t& owed, uint64_t& allowance) {
  if (owed < kCreditStep || queued_bytes_ >= kQueueDataBytes) return false;
  push(channel::encode_frame({Type::credit, number, little_endian(static_cast<uint32_t>(owed))}));
  allowance += owed;
  owed = 0;
  return true;
}

bool LinkSession::pump_answer(CallState& call) {
  const size_t before = call.out_at;
  while (call.send_credit > 0 && call.out_at < call.out.size() && queued_bytes_ < kQueueDataBytes) {
    const size_t bytes = std::min(
        {kChunkBytes, call.out.size() - call.out_at, static_cast<size_t>(call.send_credit)});
    std::string payload(1, '\1');
    payload.append(call.out, call.out_at, bytes);
    push(channel::encode_frame({Type::data, call.number, std::move(payload)}));
    call.out_at += bytes;
    call.send_credit -= bytes;
  }
  return call.out_at > before;
}

bool LinkSession::on_closed(const Wire& wire) {
  Due due;
  std::shared_ptr<Caller> caller;
  {
    const Lock lock(mutex_);
    if (wire_.get() != &wire) return wire.session().get() == this;
    wire_.reset();
    closed_ = true;
    end_all({Code::guest_failed, "the VM's QEMU ended"});
    due.closed = true;
    caller = caller_;
  }
  run(caller, due);
  return true;
}

void LinkSession::on_writable(const Wire& wire) {
  const Lock lock(mutex_);
  if (wire_.get() != &wire) return;
  flush();
  changed_.notify_all();
}

// Asks for a hello: every second for half a minute, then less and less often (an agent that starts
// later says it by itself).
void LinkSession::on_tick() {
  const Lock lock(mutex_);
  if (hello_ || held_ || closed_ || !out_.empty() || --ticks_to_ask_ > 0) return;
  ++asks_;
  ticks_to_ask_ = asks_ < 30 ? 1 : 30;
  send(Type::ask, 0, Fields{});
}

void LinkSession::run(const std::shared_ptr<Caller>& caller, Due& due) {
  if (!caller) return;
  const GuestLink::Callbacks& callbacks = caller->callbacks;
  if (due.hello && !caller->dead && callbacks.on_hello) callbacks.on_hello();
  for (auto& call : due.calls) {
    if (!caller->dead && callbacks.on_call) callbacks.on_call(std::move(call));
  }
  if (due.closed && !caller->dead && callbacks.on_closed) callbacks.on_closed();
}

// The guest has nothing more to do with the call. One that the host still works on keeps its place,
// and its bytes count, until the host lets go of it.
void LinkSession::drop(CallState& call) {
  call.gone = true;
  if (!call.delivered || call.answered) erase(call);
}

void LinkSession::erase(CallState& call) {
  const auto found = calls_.find(call.number);
  if (found == calls_.end() || found->second.get() != &call) return;
  call_bytes_ -= call.payload.size();
  calls_.erase(found);
}

void LinkSession::end(StreamState& stream, Result<int> outcome) {
  if (!stream.outcome) stream.outcome = std::move(outcome);
  streams_.erase(stream.number);
  changed_.notify_all();
}

void LinkSession::end_all(const Error& error) {
  for (const auto& [number, stream] : streams_) {
    if (!stream->outcome) stream->outcome = within(stream->what, error);
  }
  for (const auto& [number, call] : calls_) call->gone = true;
  streams_.clear();
  calls_.clear();
  call_bytes_ = 0;
  out_.clear();
  deferred_.clear();
  fresh_wire_ |= out_sent_ > 0;  // what was sent of a frame is no frame
  out_sent_ = 0;
  queued_bytes_ = 0;
  changed_.notify_all();
}

}  // namespace snow
