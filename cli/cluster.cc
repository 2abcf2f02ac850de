// The cluster and its hosts.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "api/text.h"
#include "base/file.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/each.h"
#include "cli/output.h"

namespace snow::cli {
namespace {

constexpr size_t kMaxTokenBytes = 4096;
constexpr const char* kTokenVariable = "SNOW_JOIN_TOKEN";

const std::vector<Column> kHostColumns = {
    {"ID", "id"},     {"NAME", "name"},    {"ADDRESS", "address"},  {"STATE", "state"},
    {"VMS", "vms"},   {"MEMORY", "total"}, {"VCPUS", "vcpus"},      {"SINCE", "since"},
    {"OWED", "owed"}, {"QEMU", "qemu"},    {"ACCEL", "accelerator"}};

// "3 of 512"; "-" when the host has not told.
std::string use_of(const nlohmann::json& host, const char* what, bool size) {
  const auto value = [&](const char* of) -> std::string {
    const auto at = host.find(of);
    if (at == host.end() || !at->is_object()) return "";
    const auto number = at->find(what);
    if (number == at->end() || !number->is_number_integer()) return "";
    return size ? format_size(number->get<uint64_t>()) : number->dump();
  };
  const std::string used = value("used"), capacity = value("capacity");
  if (used.empty() || capacity.empty()) return "-";
  return fmt::format("{} of {}", used, capacity);
}

void print_hosts(const Options& options, const nlohmann::json& hosts) {
  nlohmann::json shown = hosts;
  if (options.format == Format::table) {
    for (nlohmann::json& host : shown) {
      host["vms"] = use_of(host, "vms", false);
      host["total"] = use_of(host, "memory", true);
      host["vcpus"] = use_of(host, "vcpus", false);
      if (host.value("self", false)) host["name"] = cell(host, "name") + " (this one)";
    }
  }
  print_list(options, shown, kHostColumns);
}

std::string host_path(const std::string& host, const std::string& behind = "") {
  return "/hosts/" + escape(host) + behind;
}

Result<std::string> read_input(size_t most) {
  std::string text;
  char buffer[1024];
  while (text.size() <= most) {
    const ssize_t got = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(Code::host_failed, "standard input");
    if (got == 0) return text;
    text.append(buffer, static_cast<size_t>(got));
  }
  return fail(Code::invalid, "standard input: longer than {} bytes; it is no join token", most);
}

// Of the option, the file, standard input or the environment, in this order.
Result<std::string> token_of(const Options& options) {
  std::string token = options.token;
  if (!options.token_file.empty() && options.token_file != "-") {
    SNOW_ASSIGN(token, read_file(options.token_file, kMaxTokenBytes));
  } else if (options.token_file == "-" || token == "-") {
    SNOW_ASSIGN(token, read_input(kMaxTokenBytes));
  } else if (token.empty()) {
    const char* value = std::getenv(kTokenVariable);
    token = value == nullptr ? "" : value;
  }
  const size_t first = token.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) {
    return fail(Code::usage,
                "join token: missing; give --token-file FILE, or - for standard input "
                "(`snow cluster token` on a host of the cluster makes one)");
  }
  return token.substr(first, token.find_last_not_of(" \t\r\n") - first + 1);
}

}  // namespace

Result<int> cluster_init(const Options& options) {
  nlohmann::json body = {{"address", options.address}};
  if (!options.name.empty()) body["name"] = options.name;
  if (!options.host_name.empty()) body["host_name"] = options.host_name;
  if (!options.etcd.empty()) body["etcd"] = options.etcd;
  if (options.plain) body["plain"] = true;
  const Progress progress("making the cluster");
  SNOW_ASSIGN(const nlohmann::json hosts, Client(options.socket).post("/cluster", body));
  if (options.etcd.empty()) {
    note("without --etcd no other host can join; the directory is a file of this host");
  }
  print_hosts(options, hosts);
  return 0;
}

Result<int> cluster_token(const Options& options) {
  SNOW_ASSIGN(const nlohmann::json token,
              Client(options.socket).post("/cluster/tokens", {{"seconds", options.ttl_seconds}}));
  if (options.format == Format::json) {
    print_object(options, token);
  } else {
    fmt::print("{}\n", cell(token, "token"));
  }
  note(fmt::format("for one host, until {}; keep it secret",
                   printable(token.value("expires", "it is used"))));
  return 0;
}

Result<int> cluster_join(const Options& options) {
  SNOW_ASSIGN(const std::string token, token_of(options));
  nlohmann::json body = {{"token", token}, {"address", options.address}};
  if (!options.host_name.empty()) body["host_name"] = options.host_name;
  const Progress progress("joining the cluster");
  SNOW_ASSIGN(const nlohmann::json hosts, Client(options.socket).post("/cluster/join", body));
  print_hosts(options, hosts);
  return 0;
}

Result<int> host_ls(const Options& options) {
  SNOW_ASSIGN(const nlohmann::json hosts, Client(options.socket).get("/hosts"));
  print_hosts(options, hosts);
  return 0;
}

Result<int> host_show(const Options& options) {
  SNOW_ASSIGN(const nlohmann::json host, Client(options.socket).get(host_path(options.name)));
  print_object(options, host);
  return 0;
}

Result<int> host_drain(const Options& options) {
  const Client client(options.socket);
  return for_each(options, [&](const std::string& host) {
    return client.post(host_path(host, "/drain"), {{"drain", !options.undo}});
  });
}

Result<int> host_rm(const Options& options) {
  const Client client(options.socket);
  return for_each(options, [&](const std::string& host) -> Result<nlohmann::json> {
    const Progress progress(fmt::format("removing host '{}'", host));
    SNOW_TRY(client.remove(host_path(host, options.force ? "?force=true" : "")));
    return nlohmann::json(host);
  });
}

}  // namespace snow::cli
