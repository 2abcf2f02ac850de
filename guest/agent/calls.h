// Local programs (libsnow, Python, the shell commands) on a unix socket that every user may connect
// to. Their calls go on to the host under stream numbers of the agent's choosing, odd ones, and the
// answers come back. Credit is between program and host; the agent checks it, so that neither a
// program that floods nor one that does not read makes the agent grow. Single-threaded, never
// blocks.
//
// After a thaw the agent itself answers the call that asked for the clone, from `resume`; in a
// clone every other call that was pending is refused: it went on in the parent.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "guest/agent/poller.h"
#include "guest/agent/port.h"

namespace snow::guest {

inline constexpr size_t kMaxConnections = 256;       // programs connected at a time
inline constexpr size_t kMaxConnectionsOfUser = 64;  // of one user but root
inline constexpr size_t kMaxCallsOfConnection = 8;
inline constexpr size_t kMaxConnectionQueue = 2 * channel::kWindowBytes;  // bytes not yet read

class Calls {
 public:
  // Listens at `path` (replaced if it is there; mode 0666). Logs and goes on without if it cannot.
  Calls(Port& port, const std::string& path);
  ~Calls();
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  void handle(const channel::Message& message);  // from the host, on a call's stream
  void add_to(Poller& poller);
  void resumed(const channel::Fields& resume);  // changed = 1
  void host_is_new();  // nobody knows of the calls that wait: they are refused (unavailable)

 private:
  struct Connection {
    Fd fd;
    uid_t uid = 0;
    channel::LocalReader reader;
    std::string queue;
    size_t calls = 0;
  };
  struct Call {
    uint64_t connection = 0;
    uint32_t local = 0;  // the program's number for it
    std::string name;
    uint64_t credit = channel::kWindowBytes;  // what the program may still send
    uint64_t sent = 0;
  };

  void accept_one();
  void read_from(uint64_t id);
  bool take(uint64_t id, Connection& connection, const channel::Message& message);
  bool begin_call(uint64_t id, Connection& connection, const channel::Message& message);
  void send_to(uint64_t id, const channel::Message& message);
  void write_to(uint64_t id, Connection& connection);
  void answer(uint32_t stream, const channel::Fields& fields);
  void end_call(uint32_t stream);
  void forget(uint64_t id);
  void remove_broken();

  Port& port_;
  std::string path_;
  Fd listener_;
  uint64_t next_connection_ = 1;
  uint32_t next_stream_ = 1;
  std::map<uint64_t, Connection> connections_;
  std::map<uint32_t, Call> calls_;  // by the host's stream number
  std::vector<uint64_t> broken_;    // to be forgotten after the round
};

}  // namespace snow::guest
