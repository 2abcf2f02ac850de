// One Request object lives from a request's headers to its end, on its connection's own thread. The
// body is collected (or handed to an Upload), then Routes answers. Blocking in the callbacks of
// libmicrohttpd is allowed in its thread-per-connection mode.
#include "api/server.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <grp.h>
#include <microhttpd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <set>

#include "api/forward_serve.h"
#include "api/frame.h"
#include "api/request.h"
#include "api/routes.h"
#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"

namespace snow {
namespace {

constexpr size_t kHeaderBytes = 64 * 1024;  // request line and headers; also a read's size
constexpr size_t kStreamBlockBytes = 64 * 1024;
constexpr unsigned kIdleSeconds = 30;                    // until the headers are there
constexpr size_t kMaxDiscardBytes = 16 * kMaxBodyBytes;  // of a body that is too long

class MhdServer;

struct Request {
  MhdServer& server;
  Call call;
  std::unique_ptr<Upload> upload;
  std::optional<Error> error;  // found before the body's end
  size_t body_bytes = 0;
};

struct Streamed {
  MhdServer& server;
  std::function<Result<std::string>()> more;
  std::string piece;
  size_t sent = 0;
};

struct Upgraded {
  MhdServer& server;
  std::function<void(int, std::string)> run;
};

// What other daemons reach us by. It outlives the server: a connection of theirs may begin while
// the server ends.
class Door {
 public:
  explicit Door(const Routes& routes, const std::atomic<bool>& stopping)
      : routes_(&routes), stopping_(&stopping) {}

  void serve(peer::Connection& connection) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      ++inside_;
    }
    try {
      forward::serve(connection, *routes_, *stopping_);
    } catch (const std::exception& exception) {
      log_error("{}: {}", connection.name(), exception.what());
    }
    const std::lock_guard lock(mutex_);
    --inside_;
    empty_.notify_all();
  }
  // Nobody comes in any more. False: somebody was still inside at the deadline.
  bool close(int64_t deadline_ns) {
    std::unique_lock lock(mutex_);
    closed_ = true;
    const auto left = std::chrono::nanoseconds(std::max<int64_t>(deadline_ns - monotonic_ns(), 0));
    return empty_.wait_for(lock, left, [&] { return inside_ == 0; });
  }

 private:
  const Routes* routes_;
  const std::atomic<bool>* stopping_;
  std::mutex mutex_;
  std::condition_variable empty_;
  unsigned inside_ = 0;
  bool closed_ = false;
};

class MhdServer : public Server {
 public:
  MhdServer(Host& host, std::string path)
      : host_(host),
        path_(std::move(path)),
        routes_(host, stopping_),
        door_(std::make_shared<Door>(routes_, stopping_)) {}
  ~MhdServer() override { stop(1000); }

  Result<void> start(const Options& options);
  bool stop(int grace_ms) override;

  MHD_Result answer(MHD_Connection* connection, Request*& request, const char* url,
                    const char* method, const char* data, size_t* size);
  ssize_t stream(Streamed& streamed, char* into, size_t most);
  void run_upgraded(Upgraded& upgraded, int fd, std::string early);

 private:
  // Counts what stop() has to wait for.
  class Busy {
   public:
    explicit Busy(MhdServer& server) : server_(server) {
      const std::lock_guard lock(server_.mutex_);
      ++server_.busy_;
    }
    ~Busy() {
      const std::lock_guard lock(server_.mutex_);
      --server_.busy_;
      server_.idle_.notify_all();
    }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

   private:
    MhdServer& server_;
  };

  Request* begin(MHD_Connection* connection, const char* url, const char* method);
  void take(Request& request, std::string_view bytes);
  MHD_Result send(MHD_Connection* connection, Reply reply);

  Host& host_;
  const std::string path_;
  std::atomic<bool> stopping_{false};
  Routes routes_;
  const std::shared_ptr<Door> door_;
  MHD_Daemon* daemon_ = nullptr;
  std::mutex mutex_;  // guards what follows
  std::condition_variable idle_;
  unsigned busy_ = 0;
  std::set<int> upgraded_;  // sockets
  bool stopped_ = false;
};

MHD_Result on_answer(void* self, MHD_Connection* connection, const char* url, const char* method,
                     const char* /*version*/, const char* data, size_t* size, void** state) {
  return static_cast<MhdServer*>(self)->answer(connection, *reinterpret_cast<Request**>(state), url,
                                               method, data, size);
}

void on_completed(void* /*self*/, MHD_Connection* /*connection*/, void** state,
                  MHD_RequestTerminationCode /*how*/) {
  delete static_cast<Request*>(*state);
  *state = nullptr;
}

ssize_t on_stream(void* state, uint64_t /*position*/, char* into, size_t most) {
  auto& streamed = *static_cast<Streamed*>(state);
  return streamed.server.stream(streamed, into, most);
}

void on_stream_end(void* state) { delete static_cast<Streamed*>(state); }

void on_upgrade(void* state, MHD_Connection* /*connection*/, void* /*request*/, const char* early,
                size_t early_bytes, MHD_socket fd, MHD_UpgradeResponseHandle* handle) {
  const std::unique_ptr<Upgraded> upgraded(static_cast<Upgraded*>(state));
  upgraded->server.run_upgraded(*upgraded, fd, std::string(early, early_bytes));
  MHD_upgrade_action(handle, MHD_UPGRADE_ACTION_CLOSE);
}

MHD_Result on_query(void* into, MHD_ValueKind /*kind*/, const char* key, size_t key_bytes,
                    const char* value, size_t value_bytes) {
  auto& query = *static_cast<std::map<std::string, std::string>*>(into);
  query[std::string(key, key_bytes)] = value == nullptr ? "" : std::string(value, value_bytes);
  return MHD_YES;
}

void on_log(void* /*self*/, const char* format, va_list arguments) {
  char text[512];
  ::vsnprintf(text, sizeof text, format, arguments);
  std::string_view line(text);
  while (!line.empty() && line.back() == '\n') line.remove_suffix(1);
  log_debug("http: {}", line);
}

Result<void> set_rights(const std::string& path, const std::string& group) {
  std::vector<char> buffer(65536);
  struct ::group entry {};
  struct ::group* found = nullptr;
  if (!group.empty()) {
    ::getgrnam_r(group.c_str(), &entry, buffer.data(), buffer.size(), &found);
    if (found == nullptr) {
      log_warn("group '{}': does not exist, so only root may use {}; `groupadd {}` and restart",
               group, path, group);
    }
  }
  if (found != nullptr && ::chown(path.c_str(), static_cast<uid_t>(-1), found->gr_gid) < 0) {
    return fail_errno(Code::host_failed, "{}: cannot give it to group '{}'", path, group);
  }
  if (::chmod(path.c_str(), found != nullptr ? 0660 : 0600) < 0) {
    return fail_errno(Code::host_failed, "{}: chmod failed", path);
  }
  return {};
}

Result<void> MhdServer::start(const Options& options) {
  // Nobody may connect between bind and chmod.
  const mode_t old_mask = ::umask(0177);
  auto listening = listen_unix(path_);
  ::umask(old_mask);
  if (!listening) return tl::unexpected<Error>(listening.error());
  SNOW_TRY(set_rights(path_, options.group));
  ::fcntl(listening->get(), F_SETFL, O_NONBLOCK);
  daemon_ = MHD_start_daemon(MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD |
                                 MHD_USE_POLL | MHD_USE_ITC | MHD_ALLOW_UPGRADE | MHD_USE_ERROR_LOG,
                             0, nullptr, nullptr, &on_answer, this, MHD_OPTION_EXTERNAL_LOGGER,
                             &on_log, nullptr, MHD_OPTION_LISTEN_SOCKET, listening->get(),
                             MHD_OPTION_CONNECTION_LIMIT, options.connection_limit,
                             MHD_OPTION_CONNECTION_MEMORY_LIMIT, kHeaderBytes,
                             MHD_OPTION_CONNECTION_TIMEOUT, kIdleSeconds,
                             MHD_OPTION_NOTIFY_COMPLETED, &on_completed, nullptr, MHD_OPTION_END);
  if (daemon_ == nullptr) return fail(Code::host_failed, "{}: HTTP server did not start", path_);
  (void)listening->release();  // the HTTP daemon's now
  host_.serve_api([door = door_](peer::Connection& connection) { door->serve(connection); });
  return {};
}

bool MhdServer::stop(int grace_ms) {
  stopping_ = true;
  const int64_t deadline_ns = monotonic_ns() + int64_t{grace_ms} * 1'000'000;
  std::unique_lock lock(mutex_);
  if (stopped_) return true;
  if (daemon_ != nullptr) {
    const int listening = MHD_quiesce_daemon(daemon_);
    if (listening >= 0) {
      ::unlink(path_.c_str());
      ::close(listening);
    }
    for (const int fd : upgraded_) ::shutdown(fd, SHUT_RDWR);
    if (!idle_.wait_for(lock, std::chrono::milliseconds(grace_ms), [&] { return busy_ == 0; })) {
      return false;
    }
  }
  if (!door_->close(deadline_ns)) return false;
  stopped_ = true;
  lock.unlock();
  if (daemon_ != nullptr) {
    host_.serve_api({});
    MHD_stop_daemon(daemon_);
  }
  return true;
}

Request* MhdServer::begin(MHD_Connection* connection, const char* url, const char* method) {
  // From here on a silent connection is one that waits for its answer.
  MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 0U);
  auto* request = new Request{*this, {}, nullptr, std::nullopt};
  request->call.method = method;
  request->call.path = url;
  MHD_get_connection_values_n(connection, MHD_GET_ARGUMENT_KIND, &on_query, &request->call.query);
  const char* protocol =
      MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_UPGRADE);
  request->call.upgrade = protocol != nullptr && std::string_view(protocol) == kStreamProtocol;
  const auto* info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
  auto caller = caller_of(info->connect_fd);
  if (!caller) {
    request->error = caller.error();
    return request;
  }
  request->call.caller = *caller;
  if (stopping_) {
    request->error = Error{Code::unavailable, "snowd is stopping; try again in a moment"};
    return request;
  }
  auto upload = routes_.upload(request->call);
  if (upload) {
    request->upload = *std::move(upload);
  } else {
    request->error = upload.error();
  }
  return request;
}

void MhdServer::take(Request& request, std::string_view bytes) {
  request.body_bytes += bytes.size();
  if (request.error) return;
  if (request.upload) {
    if (auto written = request.upload->write(bytes); !written) {
      request.error = written.error();
      request.upload.reset();
    }
  } else if (request.body_bytes > kMaxBodyBytes) {
    request.error = Error{Code::invalid, fmt::format("body: longer than {} bytes", kMaxBodyBytes)};
    request.call.body.clear();
  } else {
    request.call.body.append(bytes);
  }
}

MHD_Result MhdServer::answer(MHD_Connection* connection, Request*& request, const char* url,
                             const char* method, const char* data, size_t* size) {
  const Busy busy(*this);
  if (request == nullptr) {
    request = begin(connection, url, method);
    // An answer before the body: the client need not send it.
    if (request->error) return send(connection, error_reply(*request->error));
    return MHD_YES;
  }
  if (*size > 0) {
    take(*request, std::string_view(data, *size));
    *size = 0;
    return request->error && request->body_bytes > kMaxDiscardBytes ? MHD_NO : MHD_YES;
  }
  if (request->error) return send(connection, error_reply(*request->error));
  if (request->upload) return send(connection, request->upload->finish());
  return send(connection, routes_.handle(request->call));
}

MHD_Result MhdServer::send(MHD_Connection* connection, Reply reply) {
  MHD_Response* response = nullptr;
  unsigned status = static_cast<unsigned>(reply.status);
  if (reply.upgraded) {
    response = MHD_create_response_for_upgrade(&on_upgrade,
                                               new Upgraded{*this, std::move(reply.upgraded)});
    MHD_add_response_header(response, MHD_HTTP_HEADER_UPGRADE, kStreamProtocol);
    status = MHD_HTTP_SWITCHING_PROTOCOLS;
  } else if (reply.more) {
    response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, kStreamBlockBytes, &on_stream,
                                                 new Streamed{*this, std::move(reply.more), {}},
                                                 &on_stream_end);
  } else {
    response = MHD_create_response_from_buffer(reply.body.size(), reply.body.data(),
                                               MHD_RESPMEM_MUST_COPY);
  }
  if (!reply.upgraded && status != MHD_HTTP_SWITCHING_PROTOCOLS) {
    if (!reply.missing.empty()) {
      MHD_add_response_header(response, "Snow-Missing",
                              fmt::format("{}", fmt::join(reply.missing, ",")).c_str());
    }
    if (status != 204) {
      MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, reply.type);
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
  }
  const MHD_Result queued = MHD_queue_response(connection, status, response);
  MHD_destroy_response(response);
  return queued;
}

ssize_t MhdServer::stream(Streamed& streamed, char* into, size_t most) {
  const Busy busy(*this);
  if (streamed.sent == streamed.piece.size()) {
    streamed.sent = 0;
    try {
      auto piece = streamed.more();
      if (!piece) {
        log_info("{}", piece.error().message);
        return MHD_CONTENT_READER_END_WITH_ERROR;
      }
      streamed.piece = *std::move(piece);
    } catch (const std::exception& exception) {
      log_error("stream: {}", exception.what());
      return MHD_CONTENT_READER_END_WITH_ERROR;
    }
    if (streamed.piece.empty()) return MHD_CONTENT_READER_END_OF_STREAM;
  }
  const size_t count = std::min(most, streamed.piece.size() - streamed.sent);
  streamed.piece.copy(into, count, streamed.sent);
  streamed.sent += count;
  return static_cast<ssize_t>(count);
}

void MhdServer::run_upgraded(Upgraded& upgraded, int fd, std::string early) {
  const Busy busy(*this);
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    upgraded_.insert(fd);
  }
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  try {
    upgraded.run(fd, std::move(early));
  } catch (const std::exception& exception) {
    log_error("stream: {}", exception.what());
  }
  const std::lock_guard lock(mutex_);
  upgraded_.erase(fd);
}

}  // namespace

Result<std::unique_ptr<Server>> Server::start(Host& host, const Options& options) {
  auto server = std::make_unique<MhdServer>(host, options.socket_path);
  SNOW_TRY(server->start(options));
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace snow
