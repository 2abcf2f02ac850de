#include "api/routes.h"

#include <array>
#include <nlohmann/json.hpp>
#include <vector>

#include "api/document.h"
#include "api/forward.h"
#include "api/handlers.h"
#include "api/text.h"
#include "base/log.h"
#include "base/names.h"

namespace snow {
namespace {

using handlers::Context;
using handlers::Handler;

struct Route {
  const char* method;
  const char* pattern;  // "{}" is one segment: a VM, image, snapshot or ticket
  Handler handler;
  std::array<const char*, 2> query{};  // parameters that it takes
};

const Route kRoutes[] = {
    {"GET", "/v1/info", handlers::info},
    {"GET", "/v1/openapi.yaml", handlers::document},
    {"GET", "/v1/images", handlers::list_images},
    {"POST", "/v1/images", handlers::import_image},
    {"GET", "/v1/images/{}", handlers::get_image},
    {"DELETE", "/v1/images/{}", handlers::remove_image},
    {"GET", "/v1/vms", handlers::list_vms, {"all"}},
    {"POST", "/v1/vms", handlers::run},
    {"GET", "/v1/vms/{}", handlers::inspect},
    {"DELETE", "/v1/vms/{}", handlers::remove, {"force"}},
    {"POST", "/v1/vms/{}/pause", handlers::pause},
    {"POST", "/v1/vms/{}/resume", handlers::resume},
    {"POST", "/v1/vms/{}/stop", handlers::stop},
    {"POST", "/v1/vms/{}/kill", handlers::kill},
    {"POST", "/v1/vms/{}/fork", handlers::fork},
    {"POST", "/v1/vms/{}/tickets", handlers::reserve},
    {"POST", "/v1/vms/{}/snapshot", handlers::snapshot},
    {"POST", "/v1/vms/{}/detach", handlers::detach},
    {"POST", "/v1/vms/{}/exec", handlers::exec},
    {"POST", "/v1/vms/{}/console", handlers::console},
    {"GET", "/v1/vms/{}/logs", handlers::logs},
    {"GET", "/v1/vms/{}/file", handlers::read_file, {"path"}},
    {"PUT", "/v1/vms/{}/file", handlers::write_file_whole, {"path", "mode"}},
    {"GET", "/v1/tickets", handlers::list_tickets},
    {"DELETE", "/v1/tickets/{}", handlers::give_back},
    {"POST", "/v1/tickets/{}/join", handlers::join},
    {"POST", "/v1/tickets/{}/kill", handlers::kill_ticket},
    {"GET", "/v1/snapshots", handlers::list_snapshots},
    {"GET", "/v1/snapshots/{}", handlers::get_snapshot},
    {"DELETE", "/v1/snapshots/{}", handlers::remove_snapshot},
    {"POST", "/v1/cluster", handlers::make_cluster},
    {"POST", "/v1/cluster/join", handlers::join_cluster},
    {"POST", "/v1/cluster/tokens", handlers::make_join_token},
    {"GET", "/v1/hosts", handlers::list_hosts},
    {"GET", "/v1/hosts/{}", handlers::get_host},
    {"DELETE", "/v1/hosts/{}", handlers::remove_host, {"force"}},
    {"POST", "/v1/hosts/{}/drain", handlers::drain_host},
    {"GET", "/v1/events", handlers::events, {"after"}},
};

// Whether `path` has the pattern's shape; `name` is the segment that stands for "{}".
bool matches(std::string_view pattern, std::string_view path, std::string& name) {
  const size_t hole = pattern.find("{}");
  if (hole == std::string_view::npos) return path == pattern;
  const std::string_view before = pattern.substr(0, hole);
  const std::string_view after = pattern.substr(hole + 2);
  if (path.size() <= before.size() + after.size() || !path.starts_with(before) ||
      !path.ends_with(after)) {
    return false;
  }
  const std::string_view segment =
      path.substr(before.size(), path.size() - before.size() - after.size());
  if (segment.find('/') != std::string_view::npos) return false;
  name = segment;
  return true;
}

struct Match {
  const Route* route = nullptr;
  std::string name;
};

Result<Match> find_route(const Call& call) {
  std::vector<const char*> other_methods;
  for (const Route& route : kRoutes) {
    Match match{&route, {}};
    if (!matches(route.pattern, call.path, match.name)) continue;
    if (call.method != route.method) {
      other_methods.push_back(route.method);
      continue;
    }
    if (!match.name.empty()) SNOW_TRY(check_name("path", match.name));
    for (const auto& [key, value] : call.query) {
      const bool known =
          std::any_of(route.query.begin(), route.query.end(),
                      [&key = key](const char* one) { return one != nullptr && key == one; });
      if (!known) {
        return fail(Code::usage, "query '{}': {} {} takes no such parameter", key.substr(0, 80),
                    call.method, call.path);
      }
    }
    return match;
  }
  if (!other_methods.empty()) {
    return fail(Code::usage, "{}: {} is not among its methods ({})", call.path,
                call.method.substr(0, 20), fmt::join(other_methods, ", "));
  }
  return fail(Code::not_found, "{}: no such path; GET /v1/openapi.yaml lists them",
              call.path.substr(0, 200));
}

Reply handle_matched(const Call& call, Host& host, const std::atomic<bool>& stopping) {
  auto match = find_route(call);
  if (!match) return error_reply(match.error());
  auto local = match->route->handler(Context{host, call, match->name, stopping});
  auto reply = forward::Forwarder(host, stopping).answer(call, std::move(local));
  return reply ? *std::move(reply) : error_reply(reply.error());
}

}  // namespace

Reply error_reply(const Error& error) {
  const nlohmann::json body = {{"code", code_name(error.code)}, {"message", error.message}};
  Reply reply;
  reply.status = http_status(error.code);
  reply.body = body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  return reply;
}

Routes::Routes(Host& host, const std::atomic<bool>& stopping) : host_(host), stopping_(stopping) {}

Reply Routes::handle(const Call& call) const {
  try {
    Reply reply = handle_matched(call, host_, stopping_);
    if (reply.status >= 500) log_warn("{} {}: {}", call.method, call.path, reply.body);
    return reply;
  } catch (const std::exception& exception) {
    log_error("{} {}: {}", call.method, call.path, exception.what());
    return error_reply(
        Error{Code::internal, fmt::format("{} {}: {}; this is a bug of snowd", call.method,
                                          call.path, exception.what())});
  }
}

Result<std::unique_ptr<Upload>> Routes::upload(const Call& call) const {
  if (call.method != "PUT") return std::unique_ptr<Upload>();
  SNOW_ASSIGN(const Match match, find_route(call));
  try {
    auto local = handlers::write_file(Context{host_, call, match.name, stopping_});
    if (local) return local;
    return forward::Forwarder(host_, stopping_).upload(call, local.error());
  } catch (const std::exception& exception) {
    log_error("{} {}: {}", call.method, call.path, exception.what());
    return fail(Code::internal, "{}: {}; this is a bug of snowd", call.path, exception.what());
  }
}

}  // namespace snow
