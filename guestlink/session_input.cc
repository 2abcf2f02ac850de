// What comes from the guest. All of it is hostile until it has been checked here.
#include <algorithm>

#include "base/log.h"
#include "guestlink/session.h"
#include "guestlink/wire_text.h"

namespace snow {

using channel::Fields;
using channel::Message;
using channel::Type;

namespace {

constexpr uint64_t kMostCredit = uint64_t{1} << 40;

void add_credit(uint64_t& credit, std::string_view payload) {
  if (payload.size() != 4) return;
  credit = std::min(credit + from_little_endian(payload), kMostCredit);
}

// A guest's error, as ours. "internal" would mean a bug of the host.
Error guest_error(const Fields& fields, const std::string& what) {
  const Code code = code_from_name(channel::field(fields, "code"));
  return {code == Code::internal ? Code::guest_failed : code,
          what + ": " + printable(channel::field(fields, "message"))};
}

}  // namespace

bool LinkSession::on_received(const Wire& wire, const Received& received) {
  {
    const Lock lock(mutex_);
    if (wire_.get() != &wire) return wire.session().get() == this;
  }
  receive(received);
  return true;
}

void LinkSession::receive(const Received& received) {
  Due due;
  std::shared_ptr<Caller> caller;
  {
    const Lock lock(mutex_);
    if (closed_) return;
    dropped_ += received.dropped;
    if (received.foreign_versions > 0) {
      complaint_ = fmt::format(
          "the guest's agent speaks another version of the channel than this host ({}); put the "
          "snow-agent of this Thundersnow into the image",
          channel::kVersion);
      send(Type::refused, 0,
           Fields{{"reason", fmt::format("this host speaks version {}", channel::kVersion)}});
      changed_.notify_all();
    }
    for (const Message& message : received.messages) handle(message, due);
    caller = caller_;
  }
  run(caller, due);
}

void LinkSession::handle(const Message& message, Due& due) {
  switch (message.type) {
    case Type::hello:
      return handle_hello(message, due);
    case Type::prepared:
    case Type::ready:
    case Type::refused:
      return handle_answer(message);
    case Type::call:
      return begin_call(message, due);
    case Type::data:
    case Type::eof:
    case Type::credit:
    case Type::closed:
      return message.stream % 2 == 0 ? handle_stream(message) : handle_call(message, due);
    default:  // only a host may say these
      ++dropped_;
  }
}

void LinkSession::handle_hello(const Message& message, Due& due) {
  const auto fields = channel::decode_fields(message.payload);
  if (!fields) {
    ++dropped_;
    return;
  }
  // A guest that has booted again knows nothing of what was open. (The boot of a clone is unknown
  // until it says hello; if it was not asked to, it has just booted.)
  const std::string_view boot = channel::field(*fields, "boot_id");
  if (hello_ && (boot_.empty() ? asks_ == 0 : boot != boot_)) {
    end_all({Code::guest_failed, "the guest booted again"});
  }
  boot_ = boot;
  const std::string_view version = channel::field(*fields, "version");
  if (version != std::to_string(channel::kVersion)) {
    complaint_ = fmt::format(
        "the guest's agent speaks version '{}' of the channel, this host version {}; put the "
        "snow-agent of this Thundersnow into the image",
        printable(version, 20), channel::kVersion);
    hello_ = false;
    changed_.notify_all();
    return;
  }
  complaint_.clear();
  hello_ = true;
  // Answers that a killed agent owed will not come.
  prepares_ = std::min(prepares_, held_ ? 1u : 0u);
  resumes_ = std::min(resumes_, 1u);
  if (thaw_) release({});
  due.hello = true;
  changed_.notify_all();
}

// Answers come in the order of the questions: one that is not to the last was waited for in vain.
void LinkSession::handle_answer(const Message& message) {
  auto fields = channel::decode_fields(message.payload);
  if (!fields) {
    ++dropped_;
  } else if (message.type == Type::refused) {
    if (!std::exchange(logged_refusal_, true)) {
      log_warn("guest: a message was refused: {}", printable(channel::field(*fields, "reason")));
    }
  } else if (message.type == Type::prepared) {
    if (prepares_ == 0) {
      ++dropped_;
    } else if (--prepares_ == 0) {
      prepared_ = std::move(*fields);
    }
  } else if (resumes_ == 0) {
    ++dropped_;
  } else if (--resumes_ == 0) {
    ready_ = std::move(*fields);
    hello_ = true;
  }
  changed_.notify_all();
}

void LinkSession::handle_stream(const Message& message) {
  const auto found = streams_.find(message.stream);
  if (found == streams_.end()) return;  // over on our side already
  const auto stream = found->second;    // stays while it may be erased
  if (message.type == Type::data) {
    handle_stream_data(*stream, message.payload);
  } else if (message.type == Type::credit) {
    add_credit(stream->send_credit, message.payload);
    changed_.notify_all();
  } else if (message.type == Type::closed) {
    handle_stream_closed(*stream, message);
  }
  // eof of one of its fds says nothing that `closed` does not.
}

void LinkSession::handle_stream_data(StreamState& stream, std::string_view payload) {
  const bool right_fd = !payload.empty() && (payload[0] == 1 || payload[0] == 2);
  const size_t bytes = payload.empty() ? 0 : payload.size() - 1;
  if (!right_fd || bytes > stream.allowance) {
    const Error error{Code::guest_failed,
                      fmt::format("{}: the guest sent {}", stream.what,
                                  right_fd ? "more than it may" : "data of no known kind")};
    send(Type::closed, stream.number, Fields{{"code", "invalid"}, {"message", "no credit left"}});
    return end(stream, tl::unexpected(error));
  }
  if (bytes == 0) return;
  const auto fd = static_cast<uint32_t>(payload[0]);
  stream.allowance -= bytes;
  stream.received.append(payload.substr(1));
  if (!stream.runs.empty() && stream.runs.back().fd == fd) {
    stream.runs.back().bytes += static_cast<uint32_t>(bytes);
  } else {
    stream.runs.push_back({static_cast<uint32_t>(bytes), fd});
  }
  changed_.notify_all();
}

void LinkSession::handle_stream_closed(StreamState& stream, const Message& message) {
  const auto fields = channel::decode_fields(message.payload);
  if (!fields) {
    return end(stream,
               fail(Code::guest_failed, "{}: the guest's answer is malformed", stream.what));
  }
  if (channel::field(*fields, "code") != "ok") {
    return end(stream, tl::unexpected(guest_error(*fields, stream.what)));
  }
  if (!stream.is_exec) return end(stream, 0);
  const auto status = channel::number_field(*fields, "exit");
  if (!status || *status < 0 || *status > 255) {
    return end(stream, fail(Code::guest_failed, "{}: the guest gave no exit code", stream.what));
  }
  end(stream, static_cast<int>(*status));
}

void LinkSession::refuse(uint32_t number, Code code, const std::string& message) {
  send(Type::answer, number, Fields{{"code", std::string(code_name(code))}, {"message", message}});
}

void LinkSession::begin_call(const Message& message, Due& due) {
  auto fields = channel::decode_fields(message.payload);
  if (!fields || message.stream % 2 == 0 || calls_.contains(message.stream)) {
    ++dropped_;
    return;
  }
  if (calls_.size() >= kCalls) {
    return refuse(message.stream, Code::no_room,
                  fmt::format("this machine has {} calls under way already", kCalls));
  }
  auto call = std::make_shared<CallState>();
  call->number = message.stream;
  call->fields = std::move(*fields);
  calls_[message.stream] = call;
  // An exit's payload comes first; every other call is whole.
  if (channel::field(call->fields, "call") != "exit") deliver(call, due);
}

void LinkSession::deliver(const std::shared_ptr<CallState>& call, Due& due) {
  call->delivered = true;
  due.calls.push_back(make_call(shared_from_this(), call));
}

void LinkSession::handle_call(const Message& message, Due& due) {
  const auto found = calls_.find(message.stream);
  if (found == calls_.end() || found->second->gone) return;
  const auto call = found->second;
  switch (message.type) {
    case Type::data:
      return handle_call_data(*call, message.payload);
    case Type::eof:
      if (!call->delivered) deliver(call, due);
      return;
    case Type::credit:
      add_credit(call->send_credit, message.payload);
      return flush();
    default:  // closed: the program is gone
      drop(*call);
  }
}

void LinkSession::handle_call_data(CallState& call, std::string_view payload) {
  if (call.answered) return;
  const size_t bytes = payload.empty() ? 0 : payload.size() - 1;
  const char* wrong = nullptr;
  Code code = Code::invalid;
  if (call.delivered || payload.empty() || payload[0] != 1) {
    wrong = "data that the call does not take";
  } else if (bytes > call.allowance) {
    wrong = "more data than there was credit for";
  } else if (call.payload.size() + bytes > channel::kMaxResultBytes) {
    wrong = "a result of more than 16 MiB";
  } else if (call_bytes_ + bytes > kCallBytes) {
    wrong = "too much data in all calls of this machine together";
    code = Code::no_room;
  }
  if (wrong != nullptr) {
    refuse(call.number, code, wrong);
    return drop(call);
  }
  call.allowance -= bytes;
  call.owed += bytes;
  call_bytes_ += bytes;
  call.payload.append(payload.substr(1));
  flush();
}

}  // namespace snow
