#include "keeper/protocol.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>

namespace snow {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 11> kOperations = {
    "hello", "fuse_fd", "keep_fuse_fd", "table_fd", "spawn",    "kill",
    "list",  "forget",  "hold",         "let_go",   "shut_down"};

// Reads members of an object; the first that is missing or of the wrong kind is remembered.
class Reader {
 public:
  explicit Reader(const json& object) : object_(object) {}

  std::string text(const char* name) {
    const json* value = find(name);
    if (value != nullptr && value->is_string()) return value->get<std::string>();
    return wrong(name, ""), "";
  }
  uint64_t number(const char* name, uint64_t limit = std::numeric_limits<uint64_t>::max()) {
    const json* value = find(name);
    if (value != nullptr && value->is_number_unsigned() && value->get<uint64_t>() <= limit) {
      return value->get<uint64_t>();
    }
    return wrong(name, " in range"), 0;
  }
  pid_t pid(const char* name) {
    return static_cast<pid_t>(number(name, std::numeric_limits<pid_t>::max()));
  }
  bool flag(const char* name) {
    const json* value = find(name);
    if (value != nullptr && value->is_boolean()) return value->get<bool>();
    return wrong(name, ""), false;
  }
  const json& array(const char* name, size_t limit) {
    static const json empty = json::array();
    const json* value = find(name);
    if (value != nullptr && value->is_array() && value->size() <= limit) return *value;
    return wrong(name, " short enough"), empty;
  }
  [[nodiscard]] bool has(const char* name) const { return object_.contains(name); }
  void check(Result<void> result) {
    if (!result && result_) result_ = std::move(result);
  }
  [[nodiscard]] Result<void> result() const { return result_; }

 private:
  const json* find(const char* name) const {
    const auto at = object_.find(name);
    return at == object_.end() ? nullptr : &*at;
  }
  void wrong(const char* name, const char* what) {
    check(fail(Code::corrupt, "keeper message: no valid '{}'{}", name, what));
  }

  const json& object_;
  Result<void> result_;
};

Result<json> parse_object(std::string_view bytes) {
  if (bytes.size() > kMaxPacketBytes) return fail(Code::corrupt, "keeper message: too long");
  json object = json::parse(bytes, nullptr, false);
  if (!object.is_object()) return fail(Code::corrupt, "keeper message: not a JSON object");
  return object;
}

Result<SpawnSpec> spec_from(const json& object) {
  Reader reader(object);
  SpawnSpec spec;
  spec.id = reader.text("id");
  spec.role = reader.text("role");
  for (const json& word : reader.array("argv", kMaxPacketBytes)) {
    if (!word.is_string()) return fail(Code::corrupt, "keeper message: 'argv' is not all text");
    spec.argv.push_back(word.get<std::string>());
  }
  for (const json& bind : reader.array("binds", kMaxBinds)) {
    if (!bind.is_object()) return fail(Code::corrupt, "keeper message: a bind is no object");
    Reader part(bind);
    spec.binds.push_back({part.text("source"), part.text("target"), part.flag("writable")});
    reader.check(part.result());
  }
  spec.root = reader.text("root");
  spec.uid = static_cast<uid_t>(reader.number("uid", std::numeric_limits<uid_t>::max()));
  spec.share_network = reader.flag("share_network");
  spec.kvm = reader.flag("kvm");
  spec.no_huge_pages = reader.flag("no_huge_pages");
  spec.memory_limit_bytes = reader.number("memory_limit_bytes");
  spec.log_path = reader.text("log_path");
  SNOW_TRY(reader.result());
  SNOW_TRY(check_spawn_spec(spec));
  return spec;
}

json to_json(const SpawnSpec& spec) {
  json binds = json::array();
  for (const Bind& bind : spec.binds) {
    binds.push_back(
        {{"source", bind.source}, {"target", bind.target}, {"writable", bind.writable}});
  }
  return {{"id", spec.id},
          {"role", spec.role},
          {"argv", spec.argv},
          {"binds", binds},
          {"root", spec.root},
          {"uid", spec.uid},
          {"share_network", spec.share_network},
          {"kvm", spec.kvm},
          {"no_huge_pages", spec.no_huge_pages},
          {"memory_limit_bytes", spec.memory_limit_bytes},
          {"log_path", spec.log_path}};
}

bool is_clean_absolute(const std::string& path) {
  if (path.size() < 2 || path[0] != '/' || path.find('\0') != std::string::npos) return false;
  // No component may be "." or ".." (and "//" or a slash at the end is refused with them).
  for (size_t start = 1; start <= path.size();) {
    const size_t end = std::min(path.find('/', start), path.size());
    const std::string part = path.substr(start, end - start);
    if (part.empty() || part == "." || part == "..") return false;
    start = end + 1;
  }
  return true;
}

bool is_name(const std::string& text) {
  return !text.empty() && text.size() <= 64 && text[0] != '.' &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '-' || c == '_' || c == '.';
         });
}

}  // namespace

Result<void> check_spawn_spec(const SpawnSpec& spec) {
  if (!is_name(spec.id)) {
    return fail(Code::invalid, "spawn: id '{}' is not 1 to 64 of a-z A-Z 0-9 . _ -", spec.id);
  }
  const auto wrong = [&](std::string_view what) {
    return fail(Code::invalid, "spawn of '{}': {}", spec.id, what);
  };
  if (spec.role.size() > 64) return wrong("the role is longer than 64 bytes");
  if (spec.uid == 0 || spec.uid == static_cast<uid_t>(-1)) {
    return wrong("a VM never runs as root; give it a user of its own (uid)");
  }
  if (spec.argv.empty() || spec.argv[0].empty() || spec.argv[0][0] != '/') {
    return wrong("argv[0] must be an absolute path");
  }
  for (const std::string& word : spec.argv) {
    if (word.find('\0') != std::string::npos) return wrong("an argument has a zero byte");
  }
  if (!is_clean_absolute(spec.root)) return wrong("root must be an absolute path without '..'");
  if (!is_clean_absolute(spec.log_path)) return wrong("log_path must be absolute, without '..'");
  if (spec.binds.size() > kMaxBinds) return wrong("too many binds");
  for (const Bind& bind : spec.binds) {
    if (!is_clean_absolute(bind.source) || !is_clean_absolute(bind.target)) {
      return wrong(fmt::format("bind '{}' to '{}': both must be absolute paths without '..'",
                               bind.source, bind.target));
    }
  }
  return {};
}

Result<Request> parse_request(std::string_view bytes) {
  SNOW_ASSIGN(const json object, parse_object(bytes));
  Reader reader(object);
  Request request;
  request.number = reader.number("number");
  const std::string name = reader.text("operation");
  SNOW_TRY(reader.result());
  const auto* const at = std::find(kOperations.begin(), kOperations.end(), name);
  if (at == kOperations.end()) {
    return fail(Code::invalid, "keeper message: unknown operation '{}'", name);
  }
  request.operation = static_cast<Operation>(at - kOperations.begin());
  switch (request.operation) {
    case Operation::hello:
      request.version = static_cast<int>(reader.number("version", 1'000'000));
      break;
    case Operation::table_fd:
      request.bytes = reader.number("bytes", kMaxTableBytes);
      break;
    case Operation::spawn: {
      const json& spec = object.contains("spec") ? object["spec"] : object;
      if (!spec.is_object()) return fail(Code::corrupt, "keeper message: no valid 'spec'");
      auto parsed = spec_from(spec);
      if (!parsed) return tl::unexpected<Error>(std::move(parsed).error());
      request.spec = std::move(*parsed);
      break;
    }
    case Operation::kill:
    case Operation::list:
    case Operation::forget:
    case Operation::hold:
    case Operation::let_go:
      request.pid = reader.pid("pid");
      break;
    case Operation::fuse_fd:
    case Operation::keep_fuse_fd:
    case Operation::shut_down:
      break;
  }
  SNOW_TRY(reader.result());
  return request;
}

uint64_t request_number(std::string_view bytes) {
  const auto object = parse_object(bytes);
  if (!object) return 0;
  const auto at = object->find("number");
  const bool has_number = at != object->end() && at->is_number_unsigned();
  return has_number ? at->get<uint64_t>() : 0;
}

Result<std::string> format_request(const Request& request) {
  json object = {{"number", request.number},
                 {"operation", kOperations[static_cast<size_t>(request.operation)]}};
  if (request.operation == Operation::hello) object["version"] = request.version;
  if (request.operation == Operation::table_fd) object["bytes"] = request.bytes;
  if (request.operation == Operation::spawn) object["spec"] = to_json(request.spec);
  if (request.pid != 0 || request.operation == Operation::list) object["pid"] = request.pid;
  std::string text;
  try {
    text = object.dump();
  } catch (const json::exception&) {
    return fail(Code::invalid, "keeper: a path or argument is not UTF-8; rename it");
  }
  if (text.size() > kMaxPacketBytes) {
    return fail(Code::invalid, "keeper: a request of {} bytes is over the limit of {}", text.size(),
                kMaxPacketBytes);
  }
  return text;
}

Result<Reply> parse_reply(std::string_view bytes) {
  SNOW_ASSIGN(const json object, parse_object(bytes));
  Reader reader(object);
  Reply reply;
  reply.number = reader.number("number");
  if (reader.has("code")) {
    reply.error = Error{code_from_name(reader.text("code")), reader.text("message")};
  }
  if (reader.has("pid")) reply.pid = reader.pid("pid");
  if (reader.has("more")) reply.more = reader.flag("more");
  if (reader.has("processes")) {
    for (const json& process : reader.array("processes", kMaxListed)) {
      if (!process.is_object())
        return fail(Code::corrupt, "keeper message: a process is no object");
      Reader part(process);
      reply.processes.push_back(
          {part.pid("pid"), part.text("id"), part.text("role"), part.flag("running"),
           static_cast<int>(part.number("status", std::numeric_limits<int>::max()))});
      reader.check(part.result());
    }
  }
  if (reply.number == 0 && !reply.error && reply.processes.size() != 1) {
    return fail(Code::corrupt, "keeper message: a report without its process");
  }
  SNOW_TRY(reader.result());
  return reply;
}

std::string format_reply(const Reply& reply) {
  json object = {{"number", reply.number}};
  if (reply.error) {
    object["code"] = code_name(reply.error->code);
    object["message"] = reply.error->message.substr(0, 4096);
  }
  if (reply.pid != 0) object["pid"] = reply.pid;
  if (reply.more) object["more"] = true;
  if (!reply.processes.empty()) {
    json processes = json::array();
    for (const KeptProcess& process : reply.processes) {
      processes.push_back({{"pid", process.pid},
                           {"id", process.id},
                           {"role", process.role},
                           {"running", process.running},
                           {"status", process.status}});
    }
    object["processes"] = std::move(processes);
  }
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace snow
