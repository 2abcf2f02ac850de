#include "api/forward_message.h"

#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

#include "api/fields.h"
#include "peer/calls.h"

namespace snow::forward {
namespace {

constexpr std::string_view kMethod = "http";
constexpr size_t kMostQuery = 8;
constexpr size_t kMaxPathBytes = 1024;
constexpr size_t kMaxQueryBytes = 4096;
constexpr uid_t kNobody = 65534;

constexpr std::array kKinds = {"whole", "stream", "upgraded", "upload"};
constexpr std::array kTypes = {"application/json", "application/octet-stream", "application/yaml",
                               "application/x-ndjson"};

// The segment behind `prefix`; empty if the path has another prefix.
std::string segment_behind(std::string_view path, std::string_view prefix) {
  if (!path.starts_with(prefix)) return "";
  path.remove_prefix(prefix.size());
  return std::string(path.substr(0, path.find('/')));
}

// What the reader refused is the other daemon's fault, not a user's.
Result<void> checked(FieldReader& fields) {
  auto done = fields.done();
  if (done) return {};
  return fail(Code::corrupt, "message of another host: {}", done.error().message);
}

Result<void> read_query(const nlohmann::json& json, std::map<std::string, std::string>& into) {
  const auto at = json.find("query");
  if (at == json.end()) return {};
  if (!at->is_object() || at->size() > kMostQuery) {
    return fail(Code::corrupt, "message of another host: its query is none");
  }
  for (const auto& [key, value] : at->items()) {
    if (key.size() > 64 || !value.is_string() ||
        value.get_ref<const std::string&>().size() > kMaxQueryBytes) {
      return fail(Code::corrupt, "message of another host: its query is none");
    }
    into[key] = value.get<std::string>();
  }
  return {};
}

}  // namespace

Reach reach_of(const Call& call, std::string& name) {
  if (call.method == "GET" && (call.path == "/v1/vms" || call.path == "/v1/tickets")) {
    return Reach::list;
  }
  if (name = segment_behind(call.path, "/v1/vms/"); !name.empty()) return Reach::vm;
  if (name = segment_behind(call.path, "/v1/tickets/"); !name.empty()) return Reach::ticket;
  if (name = segment_behind(call.path, "/v1/hosts/"); !name.empty() && call.method == "GET") {
    return Reach::host;
  }
  return Reach::here;
}

std::vector<std::byte> encode_request(const Call& call, bool upload) {
  return peer::encode_call(kMethod, {{"method", call.method},
                                     {"path", call.path},
                                     {"query", call.query},
                                     {"upgrade", call.upgrade},
                                     {"upload", upload},
                                     {"uid", call.caller.uid}});
}

Result<Request> decode_request(std::span<const std::byte> payload) {
  SNOW_ASSIGN(const peer::Request message, peer::decode_call(payload));
  const nlohmann::json& json = message.argument.json;
  Request request;
  Call& call = request.call;
  FieldReader fields(json);
  fields.need("method");
  fields.text("method", call.method, 16);
  fields.need("path");
  fields.text("path", call.path, kMaxPathBytes);
  fields.flag("upgrade", call.upgrade);
  fields.flag("upload", request.upload);
  fields.ignore("query");
  fields.ignore("uid");  // who asked there: for traces; it gives no rights here
  SNOW_TRY(checked(fields));
  SNOW_TRY(read_query(json, call.query));
  if (message.method != kMethod || message.argument.bytes.size() > kMaxBodyBytes) {
    return fail(Code::corrupt, "message of another host: not a request");
  }
  call.body.assign(reinterpret_cast<const char*>(message.argument.bytes.data()),
                   message.argument.bytes.size());
  // Nothing that is passed on opens a file of the caller. If something did, it could open none.
  call.caller = Caller{kNobody, kNobody, 0};
  call.forwarded = true;
  std::string name;
  if (reach_of(call, name) == Reach::here) {
    return fail(Code::denied, "{} {}: is not answered for another host", call.method,
                call.path.substr(0, 200));
  }
  return request;
}

std::vector<std::byte> encode_reply(const Head& head) {
  auto bytes = peer::encode_answer({{"status", head.status},
                                    {"type", head.type},
                                    {"kind", kKinds[static_cast<size_t>(head.kind)]}});
  const auto* body = reinterpret_cast<const std::byte*>(head.body.data());
  bytes.insert(bytes.end(), body, body + head.body.size());
  return bytes;
}

Result<Head> decode_reply(std::span<const std::byte> payload) {
  SNOW_ASSIGN(const peer::Message message, peer::decode_answer(payload));
  Head head;
  std::string type, kind = kKinds[0];
  int64_t status = 0;
  FieldReader fields(message.json);
  fields.need("status");
  fields.number("status", status, 200, 599);
  fields.text("type", type, 64);
  fields.choice("kind", kind, {kKinds.begin(), kKinds.end()});
  SNOW_TRY(checked(fields));
  head.status = static_cast<int>(status);
  head.type = kTypes[1];
  for (const char* known : kTypes) {
    if (type == known) head.type = known;
  }
  for (size_t i = 0; i < kKinds.size(); ++i) {
    if (kind == kKinds[i]) head.kind = static_cast<Kind>(i);
  }
  head.body.assign(reinterpret_cast<const char*>(message.bytes.data()), message.bytes.size());
  return head;
}

}  // namespace snow::forward
