#include "api/forward_serve.h"

#include "api/forward_message.h"
#include "api/forward_stream.h"
#include "base/log.h"
#include "peer/deadline.h"

namespace snow::forward {
namespace {

constexpr int kTurnMs = 500;
constexpr int kFrameMs = 30'000;   // for a frame that has begun to arrive
constexpr int kAnswerMs = 60'000;  // for the asker to take an answer that it waits for

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

bool send_whole(peer::Connection& connection, Reply reply) {
  const Head head{reply.status, reply.type, Kind::whole, std::move(reply.body)};
  return connection.send(kReply, encode_reply(head), kAnswerMs).has_value();
}

// The asker reads as fast as its own client does, so pieces may take as long as they need.
bool send_pieces(peer::Connection& connection, std::string_view bytes) {
  while (!bytes.empty()) {
    const std::string_view piece = bytes.substr(0, kPieceBytes);
    if (!connection.send(kPiece, bytes_of(piece), peer::kForever)) return false;
    bytes.remove_prefix(piece.size());
  }
  return true;
}

bool send_stream(peer::Connection& connection, const Reply& reply) {
  const Head head{reply.status, reply.type, Kind::stream, ""};
  if (!connection.send(kReply, encode_reply(head), kAnswerMs)) return false;
  if (!send_pieces(connection, reply.body)) return false;
  while (reply.more) {
    auto piece = reply.more();
    if (!piece) return connection.send_error(piece.error(), kAnswerMs).has_value();
    if (piece->empty()) break;
    if (!send_pieces(connection, *piece)) return false;
  }
  return connection.send(peer::kEnd, {}, kAnswerMs).has_value();
}

// False: the connection is of no use any more.
bool serve_upload(peer::Connection& connection, const Routes& routes, const Call& call,
                  const std::atomic<bool>& stopping) {
  auto upload = routes.upload(call);
  if (!upload) return send_whole(connection, error_reply(upload.error()));
  if (!*upload) {
    return send_whole(connection, error_reply(Error{Code::usage, call.path + ": takes no upload"}));
  }
  if (!connection.send(kReply, encode_reply({200, "application/json", Kind::upload, ""}),
                       kAnswerMs)) {
    return false;
  }
  std::vector<std::byte> piece;
  bool refused = false;
  while (!stopping) {
    const auto ready = connection.wait(kTurnMs);
    if (!ready) return false;
    if (!*ready) continue;
    const auto type = connection.receive_into(piece, kFrameMs);
    if (!type || (*type != kPiece && *type != peer::kEnd)) return false;
    if (*type == peer::kEnd) return refused || send_whole(connection, (*upload)->finish());
    // After an error the rest is dropped: the asker may not have seen it yet.
    if (refused) continue;
    const auto written =
        (*upload)->write({reinterpret_cast<const char*>(piece.data()), piece.size()});
    if (!written) {
      refused = true;
      upload->reset();
      if (!send_whole(connection, error_reply(written.error()))) return false;
    }
  }
  return false;
}

bool serve_one(peer::Connection& connection, const Routes& routes, const Request& request,
               const std::atomic<bool>& stopping) {
  if (request.upload) return serve_upload(connection, routes, request.call, stopping);
  Reply reply = routes.handle(request.call);
  if (reply.upgraded) {
    const Head head{200, "application/octet-stream", Kind::upgraded, ""};
    if (!connection.send(kReply, encode_reply(head), kAnswerMs)) return false;
    serve_upgraded(connection, reply.upgraded, stopping);
    return false;
  }
  if (reply.more || reply.body.size() > kMaxWholeBytes) return send_stream(connection, reply);
  return send_whole(connection, std::move(reply));
}

}  // namespace

void serve(peer::Connection& connection, const Routes& routes, const std::atomic<bool>& stopping) {
  connection.set_limit(kMaxRequestFrame);
  std::vector<std::byte> payload;
  while (!stopping) {
    const auto ready = connection.wait(kTurnMs);
    if (!ready) return;
    if (!*ready) continue;
    const auto type = connection.receive_into(payload, kFrameMs);
    if (!type || *type != kRequest) return;
    auto request = decode_request(payload);
    if (!request) {
      log_warn("{}: {}", connection.name(), request.error().message);
      if (!send_whole(connection, error_reply(request.error()))) return;
      continue;
    }
    log_debug("{}: {} {}", connection.name(), request->call.method, request->call.path);
    if (!serve_one(connection, routes, *request, stopping)) return;
    if (payload.capacity() > kPieceBytes) std::vector<std::byte>().swap(payload);
  }
}

}  // namespace snow::forward
