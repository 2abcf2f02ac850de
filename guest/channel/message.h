// The guest channel's messages: what snow-agent (in the guest) and snowd say to each other over a
// virtio-serial port, and libsnow and the agent over a unix socket. docs/channel.md has the byte
// tables. Shared by the host's end (guestlink/) and by the guest's programs, which build alone:
// nothing from base/ is used here.
//
// On the port each message is one frame: COBS-encoded (no zero byte in it), ended by a zero byte,
// so that a receiver finds the next frame after any cut. Inside:
//
//     u8 version (1) | u8 type | u32 stream (LE) | payload | u32 CRC-32C of all before it (LE)
//
// A frame that does not decode, has the wrong CRC or an unknown type is dropped and counted; an
// unknown version is reported to the sender by `refused`. On the unix socket the same bytes go as
// u32 length (LE) + frame, without COBS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace snow::channel {

inline constexpr uint8_t kVersion = 1;
inline constexpr size_t kMaxPayload = 48 * 1024;      // bytes in one message
inline constexpr size_t kMaxFieldBytes = 32 * 1024;   // of one field
inline constexpr size_t kMaxResultBytes = 16u << 20;  // payload of snow_exit
inline constexpr uint32_t kWindowBytes = 256 * 1024;  // a stream's first credit, each way
inline constexpr const char* kPortName = "org.thundersnow.agent.0";
inline constexpr const char* kAgentSocket = "/run/snow/agent.sock";

enum class Type : uint8_t {
  // guest -> host
  hello = 1,     // fields: version, agent, boot_id, features. First after start, and after `ask`
  prepared = 2,  // answers prepare: user processes stand still, nothing more is sent until resume.
                 // fields: held ("1" if the freezer did it; "0": it could not, and why)
  ready = 3,     // answers resume. fields: reseeded, clock, identity, hooks ("ok", "none" or what
                 // failed), seconds as "…_us" for each step
  call = 4,      // a program asks the host; fields: call + arguments (below). stream: the call's
  // host -> guest
  ask = 16,      // send hello again
  prepare = 17,  // a freeze comes: stop the user's processes and the channel
  resume = 18,   // after the thaw (or when the freeze was given up). fields: see below
  answer = 19,   // to call, on its stream; fields: code ("ok" or an error's name), message, results
  // both: byte streams. The opener chooses the number: host even, guest odd.
  open = 32,     // host -> guest: fields: kind = exec | read | write, and its arguments
  data = 33,     // payload: u8 fd (0, 1, 2) + bytes; counts against the receiver's credit
  eof = 34,      // payload: u8 fd: no more data in it
  credit = 35,   // payload: u32 LE: so many more bytes may be sent on this stream (per direction)
  closed = 36,   // the stream is over. fields: code ("ok" or error name), message; exec: exit
  signal = 37,   // host -> guest: fields: signal (number)
  resize = 38,   // host -> guest: fields: rows, columns
  refused = 63,  // fields: reason (a version or size that is not understood)
};

// prepare: fields: reason. The agent answers within its own 2 s at most.
//
// resume: fields
//   changed     "0": the freeze was given up, or a pause is over: the same machine goes on, and
//   only
//               wall_ns is heeded
//   id, name, ticket, index (0: parent), count, parent, generation, image
//   call        stream of the call that asked for the freeze; 0: the host did
//   uuid, hostname (empty: leave it), machine_id ("new" | "keep"), mac (empty: none)
//   entropy     64 random bytes, wall_ns: the host's wall clock
//   param.KEY   one for each --param; env.KEY for --env
//
// open: fields kind =
//   exec        argc, argv.0 .., env.KEY, directory (empty: /), user (empty: root),
//               terminal ("1"), rows, columns. data fd 0 to the program, 1 and 2 from it (all of
//               it as fd 1 with a terminal). closed has exit (128 + n for signal n; 126, 127 as in
//               a shell)
//   read        path. The file as data fd 1, then closed
//   write       path, mode (octal text). The file as data fd 0, then eof; closed when in place
//
// Credit counts the bytes of data payloads after the fd byte; each direction of a stream (a call's
// too) begins with kWindowBytes. `closed` from the host kills an exec's process group and removes a
// half-written file; it has no answer. `closed` from the guest on a call's stream: the program that
// called is gone. Messages for a stream that is not there are ignored.
//
// call: fields "call" =
//   ticket      n, minimum, hierarchical, place ("spread" | "local" | missing: the host's choice)
//                                            -> ticket, granted
//   clone       ticket                       -> index (in parent and clones by `resume`: the agent
//                                               answers the call that it names)
//   checkpoint                               -> checkpoint (the caller goes on; in a clone made
//                                               from it later: index)
//   create      checkpoint, ticket           -> count
//   exit        status, result stream follows  -> no answer: the clone ends
//               (payload: data fd 1 on the call's stream, then eof; at most kMaxResultBytes)
//   join        ticket, timeout_ms (-1: for ever)  -> count, and per clone i: i.index, i.how
//               ("exited" | "killed" | "crashed" | "lost" | "running"), i.status, i.size; then the
//               payloads as data fd 1 on this stream, in index order, then eof
//   kill        ticket                       -> count
//   info                                     -> id, name, index, parent, generation, ticket
struct Message {
  Type type{};
  uint32_t stream = 0;
  std::string payload;
};

// Keys and values: u8 key length | key | u32 value length (LE) | value, repeated. Keys are 1 to 255
// bytes, strictly ascending (so each set of fields has one encoding). Who encodes keeps the limits:
// kMaxFieldBytes for a value, kMaxPayload for the whole.
using Fields = std::map<std::string, std::string, std::less<>>;
std::string encode_fields(const Fields& fields);
std::optional<Fields> decode_fields(
    std::string_view payload);  // nullopt: malformed or over a limit
std::string_view field(const Fields& fields, std::string_view key);  // "" if missing
// The same from the encoded form, for who needs one value at once; "" also where it is malformed.
std::string_view field_in(std::string_view payload, std::string_view key);
std::optional<int64_t> number_field(const Fields& fields, std::string_view key);

std::string encode_message(const Message& message);  // version .. CRC
std::optional<Message> decode_message(std::string_view bytes);
bool known_type(uint8_t type);

uint32_t crc32c(std::string_view bytes);
std::string cobs_encode(std::string_view bytes);   // without the zero byte that ends a frame
std::string encode_frame(const Message& message);  // COBS + zero byte, for the port

// Takes bytes as they come from the port and gives whole messages. Holds at most one frame. An
// empty frame (a lone zero byte) means nothing: a sender that starts sends one first, which ends
// what an earlier one may have left half sent.
class FrameReader {
 public:
  // Appends messages to `messages`; malformed frames are dropped and counted.
  void feed(std::string_view bytes, std::vector<Message>& messages);
  void reset() {
    frame_.clear();
    overlong_ = false;
  }
  [[nodiscard]] uint64_t dropped() const { return dropped_; }
  // Of the dropped ones: intact, but of another version. Whoever sees it grow sends `refused`.
  [[nodiscard]] uint64_t foreign_versions() const { return foreign_; }

 private:
  void finish_frame(std::vector<Message>& messages);

  std::string frame_;
  bool overlong_ = false;
  uint64_t dropped_ = 0;
  uint64_t foreign_ = 0;
};

// The same for the unix socket: u32 length + bytes. False: the peer broke the protocol; close it.
std::string encode_local(const Message& message);
class LocalReader {
 public:
  [[nodiscard]] bool feed(std::string_view bytes, std::vector<Message>& messages);

 private:
  std::string buffer_;
};

}  // namespace snow::channel
