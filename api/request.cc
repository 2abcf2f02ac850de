#include "api/request.h"

#include <nlohmann/json.hpp>

#include "api/fields.h"
#include "base/names.h"

namespace snow {
namespace {

constexpr int64_t kMostClones = 65535;  // the host's own limit is a setting, checked there
constexpr int64_t kMostCpus = 255;
constexpr size_t kMostArguments = 4096;
constexpr size_t kMostHosts = 1024;
constexpr size_t kMostUrls = 16;
constexpr size_t kMostDepth = 8;  // of nesting; no request needs more than 2

Result<nlohmann::json> parse_body(std::string_view body) {
  if (body.size() > kMaxBodyBytes) {
    return fail(Code::invalid, "body: longer than {} bytes", kMaxBodyBytes);
  }
  if (body.find_first_not_of(" \t\r\n") == std::string_view::npos) return nlohmann::json::object();
  bool too_deep = false;
  const auto callback = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > static_cast<int>(kMostDepth)) too_deep = true;
    return !too_deep;
  };
  try {
    auto parsed = nlohmann::json::parse(body, callback);
    if (too_deep) return fail(Code::usage, "body: nested more than {} deep", kMostDepth);
    return parsed;
  } catch (const nlohmann::json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the brackets
    const std::string_view what = error.what();
    const size_t end = what.find("] ");
    return fail(Code::usage, "body: not JSON: {}",
                end == std::string_view::npos ? what : what.substr(end + 2));
  }
}

void read_placing(FieldReader& fields, Placing& placing) {
  fields.choice("place", placing.policy, {"local", "pack", "spread"});
  fields.words("hosts", placing.hosts, kMostHosts);
}

// What the reader does not see.
Result<void> check_placing(const Placing& placing) {
  for (const std::string& host : placing.hosts) SNOW_TRY(check_name("hosts", host));
  if (placing.policy == "local" && !placing.hosts.empty()) {
    return fail(Code::invalid, "place local: the parent's host is meant; leave hosts out");
  }
  return {};
}

}  // namespace

Result<ImportRequest> parse_import(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  ImportRequest request;
  FieldReader fields(json);
  fields.need("name");
  fields.name("name", request.name);
  fields.path("file", request.file);
  fields.path("kernel", request.kernel);
  fields.path("initrd", request.initrd);
  fields.text("append", request.append);
  fields.size("memory", request.memory_bytes);
  fields.number("cpus", request.cpus, 0, kMostCpus);
  SNOW_TRY(fields.done());
  if (request.file.empty() && request.kernel.empty()) {
    return fail(Code::usage, "image '{}': give a disk file, a kernel, or both", request.name);
  }
  if (!request.initrd.empty() && request.kernel.empty()) {
    return fail(Code::usage, "image '{}': an initrd needs a kernel", request.name);
  }
  return request;
}

Result<RunRequest> parse_run(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  RunRequest request;
  FieldReader fields(json);
  fields.name("image", request.image);
  fields.name("from", request.from);
  fields.name("name", request.name);
  fields.number("count", request.count, 1, kMostClones);
  fields.size("memory", request.memory_bytes);
  fields.number("cpus", request.cpus, 0, kMostCpus);
  fields.path("kernel", request.kernel);
  fields.path("initrd", request.initrd);
  fields.text("append", request.append);
  fields.choice("accelerator", request.accelerator, {"auto", "kvm", "tcg"});
  fields.choice("network", request.network, {"none", "user"});
  fields.choice("machine", request.machine, {"auto", "microvm", "q35"});
  fields.map("environment", request.environment);
  fields.flag("wait_for_agent", request.wait_for_agent);
  SNOW_TRY(fields.done());
  if (request.image.empty() == request.from.empty()) {
    return fail(Code::usage, "run: give either image or from (a snapshot)");
  }
  if (!request.from.empty()) {
    for (const char* fixed :
         {"memory", "cpus", "kernel", "initrd", "append", "accelerator", "network", "machine"}) {
      if (fields.has(fixed)) {
        return fail(Code::usage, "{}: a clone of snapshot '{}' has the snapshot's; leave it out",
                    fixed, request.from);
      }
    }
  } else if (request.count != 1) {
    return fail(Code::usage, "count: only with from (a snapshot)");
  }
  return request;
}

Result<ForkRequest> parse_fork(std::string_view body, const std::string& vm) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  ForkRequest request;
  request.vm = vm;
  FieldReader fields(json);
  fields.number("count", request.count, 1, kMostClones);
  fields.number("minimum", request.minimum, 0, kMostClones);
  fields.text("ticket", request.ticket, 128);
  fields.map("parameters", request.parameters);
  fields.flag("wait_for_ready", request.wait_for_ready);
  read_placing(fields, request.placing);
  SNOW_TRY(fields.done());
  SNOW_TRY(check_placing(request.placing));
  for (const char* fixed : {"place", "hosts"}) {
    if (!request.ticket.empty() && fields.has(fixed)) {
      return fail(Code::invalid, "{}: the hosts were chosen with the ticket; leave it out", fixed);
    }
  }
  if (!request.ticket.empty() && fields.has("count")) {
    return fail(Code::invalid,
                "count {}: a ticket makes all the clones that it granted; leave count out",
                request.count);
  }
  if (!request.ticket.empty()) request.count = 0;
  if (request.count != 0 && request.minimum > request.count) {
    return fail(Code::invalid, "minimum {}: more than count, {}", request.minimum, request.count);
  }
  return request;
}

Result<ReserveRequest> parse_reserve(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  ReserveRequest request;
  FieldReader fields(json);
  fields.need("count");
  fields.number("count", request.count, 1, kMostClones);
  fields.number("minimum", request.minimum, 0, kMostClones);
  read_placing(fields, request.placing);
  SNOW_TRY(fields.done());
  SNOW_TRY(check_placing(request.placing));
  if (request.minimum > request.count) {
    return fail(Code::invalid, "minimum {}: more than count, {}", request.minimum, request.count);
  }
  return request;
}

Result<ExecRequest> parse_exec(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  ExecRequest request;
  FieldReader fields(json);
  fields.need("argv");
  fields.words("argv", request.argv, kMostArguments);
  fields.map("environment", request.environment);
  fields.path("directory", request.directory);
  fields.text("user", request.user, 64);
  fields.flag("terminal", request.terminal);
  fields.number("rows", request.rows, 1, 65535);
  fields.number("columns", request.columns, 1, 65535);
  SNOW_TRY(fields.done());
  if (request.argv.empty() || request.argv[0].empty()) {
    return fail(Code::usage, "argv: names no program");
  }
  return request;
}

Result<ClusterRequest> parse_cluster(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  ClusterRequest request;
  FieldReader fields(json);
  fields.name("name", request.name);
  fields.name("host_name", request.host_name);
  fields.need("address");
  fields.text("address", request.address, 128);
  fields.words("etcd", request.etcd, kMostUrls);
  fields.flag("plain", request.plain);
  SNOW_TRY(fields.done());
  for (const std::string& url : request.etcd) {
    if (!url.starts_with("http://") && !url.starts_with("https://")) {
      return fail(Code::invalid, "etcd '{}': must be a URL, as in http://10.0.0.7:2379",
                  url.substr(0, 200));
    }
  }
  return request;
}

Result<JoinRequest> parse_join_cluster(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  JoinRequest request;
  FieldReader fields(json);
  fields.need("token");
  fields.text("token", request.token);
  fields.name("host_name", request.host_name);
  fields.need("address");
  fields.text("address", request.address, 128);
  SNOW_TRY(fields.done());
  return request;
}

Result<unsigned> parse_token(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  unsigned seconds = kTokenSeconds;
  FieldReader fields(json);
  fields.number("seconds", seconds, 1, 31'536'000);
  SNOW_TRY(fields.done());
  return seconds;
}

Result<bool> parse_drain(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  bool drain = true;
  FieldReader fields(json);
  fields.need("drain");
  fields.flag("drain", drain);
  SNOW_TRY(fields.done());
  return drain;
}

Result<int> parse_detach(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  int64_t timeout_ms = -1;
  FieldReader fields(json);
  fields.number("timeout_ms", timeout_ms, -1, 86'400'000);
  SNOW_TRY(fields.done());
  return static_cast<int>(timeout_ms);
}

Result<unsigned> parse_stop(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  unsigned timeout_ms = kStopTimeoutMs;
  FieldReader fields(json);
  fields.number("timeout_ms", timeout_ms, 0, 86'400'000);
  SNOW_TRY(fields.done());
  return timeout_ms;
}

Result<int64_t> parse_join(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  int64_t timeout_ms = -1;
  FieldReader fields(json);
  fields.number("timeout_ms", timeout_ms, -1, 604'800'000);
  SNOW_TRY(fields.done());
  return timeout_ms;
}

Result<std::string> parse_snapshot(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  std::string name;
  FieldReader fields(json);
  fields.need("name");
  fields.name("name", name);
  SNOW_TRY(fields.done());
  return name;
}

Result<void> parse_nothing(std::string_view body) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(body));
  return FieldReader(json).done();
}

Result<Control> parse_control(std::string_view frame) {
  SNOW_ASSIGN(const nlohmann::json json, parse_body(frame));
  Control control;
  if (json.is_object() && json.size() == 1 && json.contains("resize")) {
    const nlohmann::json& size = json["resize"];
    const auto good = [](const nlohmann::json& n) {
      return n.is_number_unsigned() && n.get<uint64_t>() >= 1 && n.get<uint64_t>() <= 65535;
    };
    if (!size.is_array() || size.size() != 2 || !good(size[0]) || !good(size[1])) {
      return fail(Code::usage, "resize: must be [rows, columns], each 1 to 65535");
    }
    control.rows = size[0].get<unsigned>();
    control.columns = size[1].get<unsigned>();
    return control;
  }
  FieldReader fields(json);
  fields.need("signal");
  int64_t number = 0;
  fields.number("signal", number, 1, 64);
  SNOW_TRY(fields.done());
  control.signal = static_cast<int>(number);
  return control;
}

}  // namespace snow
