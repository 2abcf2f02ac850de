// One call to the host: a connection to the agent of its own, a request, an answer, and a payload
// either way under credit. Used by one thread. After a clone the same connection, in the same
// state, exists in every clone.
#pragma once

#include <deque>
#include <string>
#include <string_view>

#include "guest/channel/message.h"

namespace snow::guest {

// Sets this thread's snow_message and returns `code`.
int failed(int code, const std::string& message);
int code_of(std::string_view name);  // "no_room" -> SNOW_E_NO_ROOM

class CallToHost {
 public:
  CallToHost() = default;
  ~CallToHost();
  CallToHost(const CallToHost&) = delete;
  CallToHost& operator=(const CallToHost&) = delete;

  // All: 0 or an error.
  int begin(const channel::Fields& request);
  int send_payload(std::string_view bytes);           // fd 1, then eof
  int wait_for_answer(channel::Fields& answer);       // an answer that is an error is one here
  int read_payload(size_t size, std::string& bytes);  // the next `size` bytes

 private:
  int send(channel::Type type, std::string payload);
  int receive(channel::Message& message);
  int fd_ = -1;
  uint64_t credit_ = channel::kWindowBytes;
  channel::LocalReader reader_;
  std::deque<channel::Message> messages_;
  std::string rest_;  // of a message of payload, not read yet
};

// begin and wait_for_answer.
int ask_host(const channel::Fields& request, channel::Fields& answer);

}  // namespace snow::guest
