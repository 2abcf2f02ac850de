#include "guest/libsnow/call.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "guest/libsnow/snow.h"

namespace snow::guest {

using channel::field;
using channel::Fields;
using channel::Message;
using channel::Type;

namespace {

constexpr uint32_t kStream = 1;
constexpr size_t kChunk = 32 * 1024;
constexpr const char* kNames[] = {"ok",          "internal",     "usage",     "not_found",
                                  "exists",      "invalid",      "no_room",   "wrong_state",
                                  "no_agent",    "guest_failed", "timed_out", "denied",
                                  "unavailable", "host_failed",  "corrupt",   "spent"};

thread_local std::string last_message;

std::string u32(uint32_t value) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
  return bytes;
}

}  // namespace

int failed(int code, const std::string& message) {
  last_message = message;
  return code;
}

int code_of(std::string_view name) {
  for (size_t i = 1; i < std::size(kNames); ++i) {
    if (name == kNames[i]) return -static_cast<int>(i);
  }
  return SNOW_E_INTERNAL;
}

CallToHost::~CallToHost() {
  if (fd_ >= 0) close(fd_);
}

int CallToHost::begin(const Fields& request) {
  const char* path = getenv("SNOW_AGENT_SOCKET");
  if (path == nullptr || *path == '\0') path = channel::kAgentSocket;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd_ < 0 || connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return failed(SNOW_E_UNAVAILABLE, std::string(path) + ": " + strerror(errno) +
                                          "; is snow-agent running in this machine?");
  }
  const std::string payload = channel::encode_fields(request);
  if (payload.size() > channel::kMaxPayload) {
    return failed(SNOW_E_INVALID, "the call's arguments are too long");
  }
  return send(Type::call, payload);
}

int CallToHost::send(Type type, std::string payload) {
  const std::string bytes = channel::encode_local({type, kStream, std::move(payload)});
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const ssize_t put = ::send(fd_, rest.data(), rest.size(), MSG_NOSIGNAL);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      return failed(SNOW_E_UNAVAILABLE, std::string("snow-agent hung up: ") + strerror(errno));
    }
    rest.remove_prefix(static_cast<size_t>(put));
  }
  return 0;
}

int CallToHost::receive(Message& message) {
  while (messages_.empty()) {
    char buffer[kChunk];
    const ssize_t got = read(fd_, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    std::vector<Message> messages;
    if (got <= 0) return failed(SNOW_E_UNAVAILABLE, "snow-agent hung up before it answered");
    if (!reader_.feed({buffer, static_cast<size_t>(got)}, messages)) {
      return failed(SNOW_E_CORRUPT, "snow-agent sent something that is no message");
    }
    messages_.insert(messages_.end(), messages.begin(), messages.end());
  }
  message = std::move(messages_.front());
  messages_.pop_front();
  return 0;
}

int CallToHost::send_payload(std::string_view bytes) {
  while (!bytes.empty()) {
    while (credit_ == 0) {
      Message message;
      if (const int error = receive(message)) return error;
      if (message.type == Type::answer || message.type == Type::closed) {
        messages_.push_front(std::move(message));
        return 0;  // refused: wait_for_answer says why
      }
      if (message.type != Type::credit || message.payload.size() != 4) continue;
      for (size_t i = 0; i < 4; ++i) {
        credit_ += uint64_t{static_cast<uint8_t>(message.payload[i])} << (8 * i);
      }
    }
    const size_t size = std::min<uint64_t>({bytes.size(), kChunk, credit_});
    if (const int error = send(Type::data, "\1" + std::string(bytes.substr(0, size)))) return error;
    credit_ -= size;
    bytes.remove_prefix(size);
  }
  return send(Type::eof, "\1");
}

int CallToHost::wait_for_answer(Fields& answer) {
  Message message;
  do {
    if (const int error = receive(message)) return error;
  } while (message.type != Type::answer && message.type != Type::closed);
  auto fields = channel::decode_fields(message.payload);
  if (!fields) return failed(SNOW_E_CORRUPT, "the host's answer is malformed");
  answer = std::move(*fields);
  const std::string_view code = field(answer, "code");
  if (code == "ok" && message.type == Type::answer) return 0;
  return failed(code_of(code), std::string(field(answer, "message")));
}

// One message may hold the end of one clone's payload and the beginning of the next one's.
int CallToHost::read_payload(size_t size, std::string& bytes) {
  bytes.clear();
  bytes.reserve(size);
  while (true) {
    const size_t taken = std::min(size - bytes.size(), rest_.size());
    bytes.append(rest_, 0, taken);
    rest_.erase(0, taken);
    if (bytes.size() == size) return 0;
    Message message;
    if (const int error = receive(message)) return error;
    if (message.type == Type::eof || message.type == Type::closed) {
      return failed(SNOW_E_CORRUPT, "the host sent less than it promised");
    }
    if (message.type != Type::data || message.payload.empty()) continue;
    rest_.assign(message.payload, 1);
    if (const int error = send(Type::credit, u32(static_cast<uint32_t>(rest_.size()))))
      return error;
  }
}

int ask_host(const Fields& request, Fields& answer) {
  CallToHost call;
  if (const int error = call.begin(request)) return error;
  return call.wait_for_answer(answer);
}

}  // namespace snow::guest

extern "C" const char* snow_strerror(int code) {
  const int index = -code;
  if (index < 0 || index >= static_cast<int>(std::size(snow::guest::kNames))) return "unknown";
  return snow::guest::kNames[index];
}

extern "C" const char* snow_message(void) { return snow::guest::last_message.c_str(); }
