// The messages between a daemon and the keeper: one JSON object per SOCK_SEQPACKET packet of at
// most kMaxPacketBytes, with at most one descriptor beside it (SCM_RIGHTS).
//
// The keeper speaks first: number kWelcome, or an error (there is a daemon already). The daemon's
// first request is `hello` with the protocol's version; the keeper refuses a version it does not
// know. Every request has a number (above kWelcome), which its reply repeats; number 0 is unasked:
// a report of an exit, or an error about a request that had no readable number. `list` answers in
// pieces: ask again from the last pid while `more` is set.
//
// Pure functions, thread-safe. What comes from the peer is checked here completely, so what the
// parsers return can be relied upon.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "keeper/client.h"

namespace snow {

constexpr int kKeeperVersion = 1;
constexpr uint64_t kWelcome = 1;
constexpr size_t kMaxPacketBytes = size_t{64} << 10;
constexpr size_t kMaxListed = 256;  // processes in one answer to `list`
constexpr size_t kMaxBinds = 64;
constexpr uint64_t kMaxTableBytes = uint64_t{256} << 20;

enum class Operation {
  hello,         // version
  fuse_fd,       // -> descriptor, if there is one
  keep_fuse_fd,  // + descriptor
  table_fd,      // bytes -> descriptor
  spawn,         // spec -> pid
  kill,          // pid
  list,          // pid: list those above it -> processes, more
  forget,        // pid
  hold,          // pid
  let_go,        // pid
  shut_down,
};

struct Request {
  uint64_t number = 0;
  Operation operation = Operation::hello;
  int version = 0;
  pid_t pid = 0;
  uint64_t bytes = 0;
  SpawnSpec spec = {};
};

struct Reply {
  uint64_t number = 0;  // 0: a process ended; it is processes[0]
  std::optional<Error> error = {};
  pid_t pid = 0;
  bool more = false;
  std::vector<KeptProcess> processes = {};
};

// Code::corrupt if the bytes are not a request or reply, Code::invalid if a value is out of range.
Result<Request> parse_request(std::string_view bytes);
uint64_t request_number(std::string_view bytes);  // of one that was refused; 0 if it has none
Result<Reply> parse_reply(std::string_view bytes);

// Code::invalid if it does not fit into a packet or has text that is not UTF-8.
Result<std::string> format_request(const Request& request);
std::string format_reply(const Reply& reply);

// Is this a process that a keeper may start? Code::invalid says what is wrong. (Whether sources and
// programs are there is seen when the jail is built.)
Result<void> check_spawn_spec(const SpawnSpec& spec);

// One packet over a socket. Code::unavailable when the peer is gone; Code::timed_out when a
// non-blocking socket cannot take it, or has none, now. receive_packet: `end` at the end of the
// connection; Code::corrupt for a packet that is too long.
struct Packet {
  bool end = false;
  std::string text;
  Fd fd;
};
Result<void> send_packet(int socket, std::string_view text, int fd = -1);
Result<Packet> receive_packet(int socket);

}  // namespace snow
