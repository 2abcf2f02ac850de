// Requests that one daemon passes on to another, as they travel: over service "api" of peer/, one
// at a time on a connection.
//
//   request   peer::encode_call("http", {method, path, query, upgrade, upload, uid}) | body
//   reply     peer::encode_answer({status, type, kind}) | body
//   piece     bytes: of a streamed reply, an upload, or an upgraded connection
//   kEnd      no more pieces from this side
//
// After a request comes a reply. Its kind says what follows: nothing ("whole"), pieces up to kEnd
// or an error frame ("stream"), pieces both ways ("upgraded", the connection ends with it); or the
// asker sends pieces and kEnd, and another reply comes ("upload"; it may come early, if it is an
// error). A passed-on request is never passed on again.
//
// Pure. Decoding never trusts the other side: Code::corrupt for what is no message, Code::denied
// for a request that is not to be passed on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "api/request.h"
#include "api/routes.h"
#include "base/result.h"
#include "peer/frame.h"

namespace snow::forward {

inline constexpr const char* kService = "api";
inline constexpr uint8_t kRequest = peer::kFirstFree;
inline constexpr uint8_t kReply = peer::kFirstFree + 1;
inline constexpr uint8_t kPiece = peer::kFirstFree + 2;

inline constexpr size_t kPieceBytes = 64 * 1024;           // that we send
inline constexpr size_t kMaxWholeBytes = size_t{1} << 20;  // longer bodies are streamed
// Of a frame that we take.
inline constexpr size_t kMaxRequestFrame = kMaxBodyBytes + 64 * 1024;
inline constexpr size_t kMaxReplyFrame = kMaxWholeBytes + 64 * 1024;

// Whose matter a request is, by its path.
enum class Reach {
  here,    // the asked host's alone: images, snapshots, the cluster, whatever names the caller's
           // files
  vm,      // the host's that has the VM `name`
  ticket,  // the host's that has the ticket `name`
  host,    // a look at the host `name`
  list,    // all hosts'
};
Reach reach_of(const Call& call, std::string& name);

struct Request {
  Call call;
  bool upload = false;
};
std::vector<std::byte> encode_request(const Call& call, bool upload);  // without the body
Result<Request> decode_request(std::span<const std::byte> payload);

enum class Kind { whole, stream, upgraded, upload };
struct Head {
  int status = 200;
  const char* type = "application/json";  // one of those that the API has
  Kind kind = Kind::whole;
  std::string body;  // of a whole one
};
std::vector<std::byte> encode_reply(const Head& head);  // with the body
Result<Head> decode_reply(std::span<const std::byte> payload);

}  // namespace snow::forward
