// The operations whose bytes flow while they last: programs, consoles, files, events.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "api/handlers.h"
#include "api/request.h"
#include "api/stream.h"
#include "api/text.h"

namespace snow::handlers {
namespace {

constexpr int kEventWaitMs = 1000;  // a stop of the daemon waits no longer than this
constexpr int kHeartbeatTurns = 3;  // an empty line after so many waits without events

Result<void> need_upgrade(const Call& call) {
  if (call.upgrade) return {};
  return fail(Code::usage, "{}: needs the headers Connection: Upgrade and Upgrade: snow-stream",
              call.path);
}

Result<std::string> path_of(const Call& call) {
  const auto at = call.query.find("path");
  if (at == call.query.end()) return fail(Code::usage, "query 'path': missing");
  const std::string& path = at->second;
  if (path.empty() || path[0] != '/' || path.size() > 4095 ||
      path.find('\0') != std::string::npos) {
    return fail(Code::invalid, "path '{}': must be an absolute path in the guest",
                path.substr(0, 200));
  }
  return path;
}

// Host::events as lines. Starts behind the newest event when the client names none, so that none
// is lost between two waits.
class EventLines {
 public:
  EventLines(Host& host, uint64_t after, const std::atomic<bool>& stopping)
      : host_(host), after_(after), stopping_(stopping) {}

  Result<std::string> next() {
    for (int turn = 0; turn < kHeartbeatTurns; ++turn) {
      if (stopping_) return std::string();
      SNOW_ASSIGN(const nlohmann::json events, host_.events(after_, kEventWaitMs));
      std::string lines;
      for (const nlohmann::json& event : events) {
        after_ = std::max(after_, event.value("seq", uint64_t{0}));
        lines += event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
      }
      if (!lines.empty()) return lines;
    }
    return std::string("\n");
  }

 private:
  Host& host_;
  uint64_t after_;
  const std::atomic<bool>& stopping_;
};

class FileUpload : public Upload {
 public:
  explicit FileUpload(std::unique_ptr<GuestStream> stream) : stream_(std::move(stream)) {}

  Result<void> write(std::string_view bytes) override { return stream_->write(bytes); }

  Reply finish() override {
    if (auto ended = stream_->write_eof(); !ended) return error_reply(ended.error());
    for (;;) {
      const auto chunk = stream_->read(-1);
      if (!chunk || chunk->end) break;
    }
    if (auto outcome = stream_->outcome(); !outcome) return error_reply(outcome.error());
    Reply reply;
    reply.status = 204;
    return reply;
  }

 private:
  std::unique_ptr<GuestStream> stream_;
};

}  // namespace

Result<Reply> exec(const Context& context) {
  SNOW_ASSIGN(const ExecRequest request, parse_exec(context.call.body));
  SNOW_TRY(need_upgrade(context.call));
  SNOW_ASSIGN(std::shared_ptr<GuestStream> stream, context.host.exec(context.name, request));
  Reply reply;
  reply.upgraded = [stream](int fd, std::string early) {
    serve_exec(fd, std::move(early), *stream);
  };
  return reply;
}

Result<Reply> console(const Context& context) {
  SNOW_TRY(parse_nothing(context.call.body));
  SNOW_TRY(need_upgrade(context.call));
  SNOW_ASSIGN(std::shared_ptr<Host::ConsoleSession> session, context.host.console(context.name));
  Reply reply;
  reply.upgraded = [session](int fd, std::string early) {
    serve_console(fd, std::move(early), *session);
  };
  return reply;
}

Result<Reply> logs(const Context& context) {
  SNOW_ASSIGN(std::string text, context.host.console_log(context.name));
  Reply reply;
  reply.type = "application/octet-stream";
  reply.body = std::move(text);
  return reply;
}

Result<Reply> read_file(const Context& context) {
  SNOW_ASSIGN(const std::string path, path_of(context.call));
  SNOW_ASSIGN(std::shared_ptr<GuestStream> stream, context.host.read_file(context.name, path));
  // The first piece is awaited here: a file that is not there is a proper error.
  auto first = std::make_shared<std::optional<GuestStream::Chunk>>(stream->read(-1));
  if (!*first || (*first)->end) {
    if (auto outcome = stream->outcome(); !outcome) {
      return tl::unexpected<Error>(std::move(outcome).error());
    }
  }
  Reply reply;
  reply.type = "application/octet-stream";
  reply.more = [stream, first]() -> Result<std::string> {
    std::optional<GuestStream::Chunk> chunk = std::move(*first);
    first->reset();
    if (!chunk) chunk = stream->read(-1);
    if (chunk && !chunk->end) return std::move(chunk->bytes);
    first->emplace().end = true;
    if (auto outcome = stream->outcome(); !outcome) {
      return tl::unexpected<Error>(std::move(outcome).error());
    }
    return std::string();
  };
  return reply;
}

Result<std::unique_ptr<Upload>> write_file(const Context& context) {
  SNOW_ASSIGN(const std::string path, path_of(context.call));
  unsigned mode = 0644;
  if (const auto at = context.call.query.find("mode"); at != context.call.query.end()) {
    const std::string& text = at->second;
    if (text.empty() || text.size() > 4 || text.find_first_not_of("01234567") != text.npos) {
      return fail(Code::invalid, "mode '{}': must be 1 to 4 octal digits", text.substr(0, 80));
    }
    mode = static_cast<unsigned>(std::stoul(text, nullptr, 8));
  }
  SNOW_ASSIGN(std::unique_ptr<GuestStream> stream,
              context.host.write_file(context.name, path, mode));
  return std::unique_ptr<Upload>(std::make_unique<FileUpload>(std::move(stream)));
}

Result<Reply> write_file_whole(const Context& context) {
  SNOW_ASSIGN(const std::unique_ptr<Upload> upload, write_file(context));
  if (!context.call.body.empty()) SNOW_TRY(upload->write(context.call.body));
  return upload->finish();
}

Result<Reply> events(const Context& context) {
  int64_t after = 0;
  if (const auto at = context.call.query.find("after"); at != context.call.query.end()) {
    SNOW_ASSIGN(after, parse_number("after", at->second, 0, INT64_MAX));
  }
  if (after == 0) {
    SNOW_ASSIGN(const nlohmann::json info, context.host.info());
    after = info.value("last_event", int64_t{0});
  }
  auto lines =
      std::make_shared<EventLines>(context.host, static_cast<uint64_t>(after), context.stopping);
  Reply reply;
  reply.type = "application/x-ndjson";
  reply.more = [lines] { return lines->next(); };
  return reply;
}

}  // namespace snow::handlers
