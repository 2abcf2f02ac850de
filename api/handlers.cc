#include "api/handlers.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "api/document.h"
#include "api/request.h"
#include "api/text.h"

namespace snow::handlers {
namespace {

Reply json_reply(int status, const nlohmann::json& json) {
  Reply reply;
  reply.status = status;
  reply.body = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  return reply;
}

Result<Reply> reply_with(int status, Result<nlohmann::json> result) {
  if (!result) return tl::unexpected<Error>(std::move(result).error());
  return json_reply(status, *result);
}

Result<Reply> reply_empty(Result<void> result) {
  if (!result) return tl::unexpected<Error>(std::move(result).error());
  Reply reply;
  reply.status = 204;
  return reply;
}

Result<bool> flag_of(const Call& call, const char* name) {
  const auto at = call.query.find(name);
  if (at == call.query.end()) return false;
  return parse_bool(name, at->second);
}

// Files of the caller, opened with the caller's rights and kept open for the length of a call.
class CallerFiles {
 public:
  explicit CallerFiles(const Caller& caller) : caller_(caller) {}

  // Puts the opened file's path in place of the name.
  Result<void> open(std::string& path) {
    if (path.empty()) return {};
    SNOW_ASSIGN(CallerFile file, open_as(caller_, path));
    path = file.path;
    files_.push_back(std::move(file));
    return {};
  }

  // Messages speak of the files by the names that the caller knows.
  Result<nlohmann::json> rename(Result<nlohmann::json> result) const {
    if (result) return result;
    std::string& message = result.error().message;
    for (const CallerFile& file : files_) {
      for (size_t at = 0; (at = message.find(file.path, at)) != std::string::npos;) {
        message.replace(at, file.path.size(), file.name);
        at += file.name.size();
      }
    }
    return result;
  }

 private:
  const Caller caller_;
  std::vector<CallerFile> files_;
};

}  // namespace

Result<Reply> info(const Context& context) { return reply_with(200, context.host.info()); }

Result<Reply> document(const Context&) {
  Reply reply;
  reply.type = "application/yaml";
  reply.body = api_document();
  return reply;
}

Result<Reply> list_images(const Context& context) { return reply_with(200, context.host.images()); }

Result<Reply> import_image(const Context& context) {
  SNOW_ASSIGN(ImportRequest request, parse_import(context.call.body));
  CallerFiles files(context.call.caller);
  SNOW_TRY(files.open(request.file));
  SNOW_TRY(files.open(request.kernel));
  SNOW_TRY(files.open(request.initrd));
  return reply_with(201, files.rename(context.host.import_image(request)));
}

Result<Reply> get_image(const Context& context) {
  return reply_with(200, context.host.image(context.name));
}

Result<Reply> remove_image(const Context& context) {
  return reply_empty(context.host.remove_image(context.name));
}

Result<Reply> list_vms(const Context& context) {
  SNOW_ASSIGN(const bool all, flag_of(context.call, "all"));
  return reply_with(200, context.host.vms(all));
}

Result<Reply> run(const Context& context) {
  SNOW_ASSIGN(RunRequest request, parse_run(context.call.body));
  CallerFiles files(context.call.caller);
  SNOW_TRY(files.open(request.kernel));
  SNOW_TRY(files.open(request.initrd));
  return reply_with(201, files.rename(context.host.run(request)));
}

Result<Reply> inspect(const Context& context) {
  return reply_with(200, context.host.inspect(context.name));
}

Result<Reply> remove(const Context& context) {
  SNOW_ASSIGN(const bool force, flag_of(context.call, "force"));
  return reply_empty(context.host.remove(context.name, force));
}

Result<Reply> pause(const Context& context) {
  SNOW_TRY(parse_nothing(context.call.body));
  return reply_with(200, context.host.pause(context.name));
}

Result<Reply> resume(const Context& context) {
  SNOW_TRY(parse_nothing(context.call.body));
  return reply_with(200, context.host.resume(context.name));
}

Result<Reply> stop(const Context& context) {
  SNOW_ASSIGN(const unsigned timeout_ms, parse_stop(context.call.body));
  return reply_with(200, context.host.stop(context.name, timeout_ms));
}

Result<Reply> kill(const Context& context) {
  SNOW_TRY(parse_nothing(context.call.body));
  return reply_with(200, context.host.kill(context.name));
}

Result<Reply> fork(const Context& context) {
  SNOW_ASSIGN(const ForkRequest request, parse_fork(context.call.body, context.name));
  return reply_with(201, context.host.fork(request));
}

Result<Reply> reserve(const Context& context) {
  SNOW_ASSIGN(const ReserveRequest request, parse_reserve(context.call.body));
  return reply_with(
      201, context.host.reserve(context.name, request.count, request.minimum, request.placing));
}

Result<Reply> snapshot(const Context& context) {
  SNOW_ASSIGN(const std::string name, parse_snapshot(context.call.body));
  return reply_with(201, context.host.snapshot(context.name, name));
}

Result<Reply> list_tickets(const Context& context) {
  return reply_with(200, context.host.tickets());
}

Result<Reply> give_back(const Context& context) {
  return reply_empty(context.host.give_back(context.name));
}

Result<Reply> join(const Context& context) {
  SNOW_ASSIGN(const int64_t timeout_ms, parse_join(context.call.body));
  return reply_with(200, context.host.join(context.name, timeout_ms));
}

Result<Reply> kill_ticket(const Context& context) {
  SNOW_TRY(parse_nothing(context.call.body));
  return reply_with(200, context.host.kill_ticket(context.name));
}

Result<Reply> list_snapshots(const Context& context) {
  return reply_with(200, context.host.snapshots());
}

Result<Reply> get_snapshot(const Context& context) {
  return reply_with(200, context.host.snapshot_info(context.name));
}

Result<Reply> remove_snapshot(const Context& context) {
  return reply_empty(context.host.remove_snapshot(context.name));
}

Result<Reply> detach(const Context& context) {
  SNOW_ASSIGN(const int timeout_ms, parse_detach(context.call.body));
  return reply_with(200, context.host.detach(context.name, timeout_ms));
}

Result<Reply> make_cluster(const Context& context) {
  SNOW_ASSIGN(const ClusterRequest request, parse_cluster(context.call.body));
  return reply_with(201, context.host.make_cluster(request));
}

Result<Reply> join_cluster(const Context& context) {
  SNOW_ASSIGN(const JoinRequest request, parse_join_cluster(context.call.body));
  return reply_with(201, context.host.join_cluster(request));
}

Result<Reply> make_join_token(const Context& context) {
  SNOW_ASSIGN(const unsigned seconds, parse_token(context.call.body));
  return reply_with(201, context.host.make_join_token(seconds));
}

Result<Reply> list_hosts(const Context& context) { return reply_with(200, context.host.hosts()); }

Result<Reply> get_host(const Context& context) {
  return reply_with(200, context.host.host(context.name));
}

Result<Reply> remove_host(const Context& context) {
  SNOW_ASSIGN(const bool force, flag_of(context.call, "force"));
  return reply_empty(context.host.remove_host(context.name, force));
}

Result<Reply> drain_host(const Context& context) {
  SNOW_ASSIGN(const bool drain, parse_drain(context.call.body));
  return reply_with(200, context.host.drain_host(context.name, drain));
}

}  // namespace snow::handlers
