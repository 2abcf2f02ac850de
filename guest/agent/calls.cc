#include "guest/agent/calls.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace snow::guest {

using channel::field;
using channel::Fields;
using channel::Message;
using channel::Type;

namespace {

uint32_t credit_of(const Message& message) {
  uint32_t value = 0;
  if (message.payload.size() != 4) return 0;
  for (size_t i = 0; i < 4; ++i) {
    value |= uint32_t{static_cast<uint8_t>(message.payload[i])} << (8 * i);
  }
  return value;
}

Fields refusal(const char* code, const std::string& message) {
  return {{"code", code}, {"message", message}};
}

}  // namespace

Calls::Calls(Port& port, const std::string& path) : port_(port), path_(path) {
  unlink(path.c_str());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  listener_ = Fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!listener_ ||
      bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      chmod(path.c_str(), 0666) != 0 || listen(listener_.get(), 64) != 0) {
    log_line(path + ": " + error_text(errno) + "; local programs cannot call");
    listener_.reset();
  }
}

Calls::~Calls() {
  if (listener_) unlink(path_.c_str());
}

void Calls::add_to(Poller& poller) {
  remove_broken();
  if (listener_) poller.add(listener_.get(), POLLIN, [this](short) { accept_one(); });
  for (auto& [number, connection] : connections_) {
    const uint64_t id = number;
    const bool want_read = !port_.full() && connection.queue.size() < channel::kWindowBytes;
    const bool want_write = !connection.queue.empty();
    const short events = static_cast<short>((want_read ? POLLIN : 0) | (want_write ? POLLOUT : 0));
    if (events == 0) continue;
    poller.add(connection.fd.get(), events, [this, id, want_read](short got) {
      const auto found = connections_.find(id);
      if (found == connections_.end()) return;
      if ((got & POLLOUT) != 0) write_to(id, found->second);
      if (want_read && (got & (POLLIN | POLLHUP | POLLERR)) != 0) {
        read_from(id);
      } else if ((got & (POLLHUP | POLLERR)) != 0) {
        broken_.push_back(id);
      }
    });
  }
}

void Calls::accept_one() {
  Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd) return;
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return;
  const auto of_user = std::count_if(connections_.begin(), connections_.end(),
                                     [&](const auto& c) { return c.second.uid == peer.uid; });
  if (connections_.size() >= kMaxConnections ||
      (peer.uid != 0 && static_cast<size_t>(of_user) >= kMaxConnectionsOfUser)) {
    return;  // closed at once
  }
  Connection& connection = connections_[next_connection_++];
  connection.fd = std::move(fd);
  connection.uid = peer.uid;
}

void Calls::read_from(uint64_t id) {
  Connection& connection = connections_.at(id);
  char buffer[32 * 1024];
  const ssize_t got = read(connection.fd.get(), buffer, sizeof buffer);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  std::vector<Message> messages;
  bool good = got > 0 && connection.reader.feed({buffer, static_cast<size_t>(got)}, messages);
  for (const Message& message : messages) good = good && take(id, connection, message);
  if (!good) forget(id);
}

// False: the program broke the rules and is cut off.
bool Calls::take(uint64_t id, Connection& connection, const Message& message) {
  if (message.type == Type::call) return begin_call(id, connection, message);
  const auto found = std::find_if(calls_.begin(), calls_.end(), [&](const auto& call) {
    return call.second.connection == id && call.second.local == message.stream;
  });
  if (found == calls_.end()) return true;  // a call that has been answered meanwhile
  Call& call = found->second;
  if (message.type == Type::data) {
    const size_t bytes = message.payload.empty() ? 0 : message.payload.size() - 1;
    call.sent += bytes;
    if (bytes > call.credit || call.sent > channel::kMaxResultBytes) return false;
    call.credit -= bytes;
  } else if (message.type != Type::eof && message.type != Type::credit) {
    return false;
  }
  port_.send(message.type, found->first, message.payload);
  return true;
}

bool Calls::begin_call(uint64_t id, Connection& connection, const Message& message) {
  const auto fields = channel::decode_fields(message.payload);
  if (!fields) return false;
  const bool taken = std::any_of(calls_.begin(), calls_.end(), [&](const auto& call) {
    return call.second.connection == id && call.second.local == message.stream;
  });
  if (taken) return false;
  if (connection.calls >= kMaxCallsOfConnection) {
    send_to(id, {Type::answer, message.stream,
                 channel::encode_fields(refusal("no_room", "too many calls on one connection"))});
    return true;
  }
  ++connection.calls;
  while (calls_.contains(next_stream_)) next_stream_ += 2;
  Call& call = calls_[next_stream_];
  call.connection = id;
  call.local = message.stream;
  call.name = field(*fields, "call");
  port_.send(Type::call, next_stream_, message.payload);
  next_stream_ += 2;
  return true;
}

void Calls::handle(const Message& message) {
  const auto found = calls_.find(message.stream);
  if (found == calls_.end()) return;
  Call& call = found->second;
  if (message.type == Type::credit) call.credit += credit_of(message);
  send_to(call.connection, {message.type, call.local, message.payload});
  if (message.type == Type::answer) {
    const auto fields = channel::decode_fields(message.payload);
    const bool payload_follows = fields && field(*fields, "code") == "ok" && call.name == "join";
    if (!payload_follows) end_call(message.stream);
  } else if (message.type == Type::eof || message.type == Type::closed) {
    end_call(message.stream);
  }
}

void Calls::send_to(uint64_t id, const Message& message) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  found->second.queue += channel::encode_local(message);
  write_to(id, found->second);
}

void Calls::write_to(uint64_t id, Connection& connection) {
  while (!connection.queue.empty()) {
    const ssize_t put =
        ::send(connection.fd.get(), connection.queue.data(), connection.queue.size(), MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      if (errno != EAGAIN) broken_.push_back(id);
      break;
    }
    connection.queue.erase(0, static_cast<size_t>(put));
  }
  // It gave credit for what it does not read.
  if (connection.queue.size() > kMaxConnectionQueue) broken_.push_back(id);
}

void Calls::answer(uint32_t stream, const Fields& fields) {
  const auto found = calls_.find(stream);
  if (found == calls_.end()) return;
  send_to(found->second.connection,
          {Type::answer, found->second.local, channel::encode_fields(fields)});
  end_call(stream);
}

void Calls::end_call(uint32_t stream) {
  const auto found = calls_.find(stream);
  if (found == calls_.end()) return;
  const auto connection = connections_.find(found->second.connection);
  if (connection != connections_.end()) --connection->second.calls;
  calls_.erase(found);
}

// The program is gone: the host hears of it, so that nothing waits for it there.
void Calls::forget(uint64_t id) {
  for (auto at = calls_.begin(); at != calls_.end();) {
    if (at->second.connection == id) {
      port_.send(Type::closed, at->first,
                 Fields{{"code", "ok"}, {"message", "the caller is gone"}});
      at = calls_.erase(at);
    } else {
      ++at;
    }
  }
  connections_.erase(id);
}

void Calls::remove_broken() {
  for (const uint64_t id : broken_) forget(id);
  broken_.clear();
}

void Calls::resumed(const Fields& resume) {
  const bool clone = channel::number_field(resume, "index").value_or(0) > 0;
  const int64_t asked = channel::number_field(resume, "call").value_or(0);
  Fields own = {{"code", "ok"}};
  for (const char* key : {"index", "id", "name", "parent", "generation", "ticket", "count"}) {
    own[key] = field(resume, key);
  }
  std::vector<uint32_t> streams;
  for (const auto& [stream, call] : calls_) streams.push_back(stream);
  for (const uint32_t stream : streams) {
    // The parent's checkpoint call is answered by the host, who knows the checkpoint's name.
    if (stream == asked && (clone || calls_.at(stream).name == "clone")) {
      answer(stream, own);
    } else if (clone) {
      answer(stream, refusal("wrong_state",
                             "this machine became a clone while the call waited; the call goes on "
                             "in the parent"));
    }
  }
}

void Calls::host_is_new() {
  while (!calls_.empty()) {
    answer(calls_.begin()->first, refusal("unavailable",
                                          "the host's daemon is another one now; "
                                          "what it did not finish is undone"));
  }
}

}  // namespace snow::guest
