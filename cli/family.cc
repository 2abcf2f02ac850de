// Forks and what belongs to them: the tree, tickets, joins.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "api/text.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace snow::cli {
namespace {

const std::vector<Column> kTicketColumns = {{"TICKET", "ticket"},       {"VM", "vm"},
                                            {"REQUESTED", "requested"}, {"GRANTED", "granted"},
                                            {"STATE", "state"},         {"CREATED", "created"},
                                            {"EXPIRES", "expires"}};

std::string line_of(const nlohmann::json& vm) {
  std::string line = fmt::format("{}  {}  {}", cell(vm, "name"), cell(vm, "id"), state_of(vm));
  if (vm.contains("exit") && vm["exit"].is_object()) {
    line += fmt::format(" ({} {})", cell(vm, "exit.how"), cell(vm, "exit.status"));
  }
  if (const std::string host = cell(vm, "host"); host != "-") line += "  on " + host;
  return line;
}

using Family = std::multimap<std::string, const nlohmann::json*>;  // by parent's id

// `seen` stops a loop that a wrong answer would make.
void print_branch(const Family& family, const nlohmann::json& vm, const std::string& indent,
                  std::set<std::string>& seen) {
  const std::string id = cell(vm, "id");
  if (!seen.insert(id).second) return;
  const auto [first, last] = family.equal_range(id);
  for (auto child = first; child != last; ++child) {
    const bool is_last = std::next(child) == last;
    fmt::print("{}{}{}\n", indent, is_last ? "└─ " : "├─ ", line_of(*child->second));
    print_branch(family, *child->second, indent + (is_last ? "   " : "│  "), seen);
  }
}

// In the order in which they happen; what is not among them comes before the total.
void print_steps(const nlohmann::json& steps) {
  static const std::vector<std::string> order = {
      "reserve",        "prepare",     "stop",      "save",       "scan",
      "bind",           "load",        "continue",  "pause",      "parent_agent",
      "clones_running", "first_ready", "all_ready", "other_hosts"};
  const auto place = [](const std::string& name) {
    return name == "total" ? std::ptrdiff_t(order.size()) + 1
                           : std::find(order.begin(), order.end(), name) - order.begin();
  };
  std::vector<std::string> names;
  for (const auto& [name, ms] : steps.items()) names.push_back(name);
  std::stable_sort(names.begin(), names.end(),
                   [&](const std::string& a, const std::string& b) { return place(a) < place(b); });
  for (const std::string& name : names) {
    if (!steps[name].is_number()) continue;
    fmt::print(stderr, "  {:<16} {:>10.2f} ms\n", printable(name), steps[name].get<double>());
  }
}

// How many clones are on which host; nothing without a cluster.
void print_places(const nlohmann::json& clones) {
  std::map<std::string, int> hosts;
  for (const nlohmann::json& clone : clones) ++hosts[cell(clone, "host")];
  hosts.erase("-");
  for (const auto& [host, count] : hosts) {
    fmt::print(stderr, "  {} on host {}\n",
               count == 1 ? "1 clone" : fmt::format("{} clones", count), host);
  }
}

void set_placing(const Options& options, nlohmann::json& body) {
  if (!options.place.empty()) body["place"] = options.place;
  if (!options.hosts.empty()) body["hosts"] = options.hosts;
}

}  // namespace

Result<int> tree(const Options& options) {
  SNOW_ASSIGN(nlohmann::json vms, Client(options.socket).get("/vms?all=true"));
  if (options.format != Format::table) {
    print_vms(options, vms);
    return 0;
  }
  // Several hosts answer in no order; web.10 comes after web.9.
  std::stable_sort(vms.begin(), vms.end(), [](const nlohmann::json& a, const nlohmann::json& b) {
    return strverscmp(cell(a, "name").c_str(), cell(b, "name").c_str()) < 0;
  });
  std::set<std::string> ids;
  for (const nlohmann::json& vm : vms) ids.insert(cell(vm, "id"));
  Family family;
  std::vector<const nlohmann::json*> roots;
  for (const nlohmann::json& vm : vms) {
    const std::string parent = cell(vm, "parent");
    if (ids.contains(parent)) {
      family.emplace(parent, &vm);
    } else {
      roots.push_back(&vm);  // booted, or its parent was removed
    }
  }
  std::set<std::string> seen;
  for (const nlohmann::json* root : roots) {
    fmt::print("{}\n", line_of(*root));
    print_branch(family, *root, "", seen);
  }
  return 0;
}

Result<int> fork(const Options& options) {
  nlohmann::json body = {{"wait_for_ready", !options.no_wait}};
  if (!options.ticket.empty()) body["ticket"] = options.ticket;
  if (options.has_count || options.ticket.empty()) body["count"] = options.count;
  if (options.minimum != 0) body["minimum"] = options.minimum;
  set_placing(options, body);
  SNOW_ASSIGN(const auto parameters, pairs_of("--param", options.parameters));
  if (!parameters.empty()) body["parameters"] = parameters;
  nlohmann::json result;
  {
    const Progress progress(fmt::format("forking '{}'", options.vm));
    SNOW_ASSIGN(result, Client(options.socket).post("/vms/" + escape(options.vm) + "/fork", body));
  }
  if (options.format == Format::json) {
    print_object(options, result);
  } else {
    print_vms(options, result.at("clones"));
  }
  for (const nlohmann::json& undone : result.at("undone")) {
    note("not done: " + (undone.is_string() ? undone.get<std::string>() : undone.dump()));
  }
  if (options.verbose) {
    fmt::print(stderr, "ticket {}\n", cell(result, "ticket"));
    print_places(result.at("clones"));
    if (result.contains("steps") && result["steps"].is_object()) print_steps(result["steps"]);
  }
  return 0;
}

Result<int> reserve(const Options& options) {
  nlohmann::json body = {{"count", options.count}};
  if (options.minimum != 0) body["minimum"] = options.minimum;
  set_placing(options, body);
  const Progress progress("starting shells");
  SNOW_ASSIGN(const nlohmann::json ticket,
              Client(options.socket).post("/vms/" + escape(options.vm) + "/tickets", body));
  print_list(options, options.format == Format::json ? ticket : nlohmann::json::array({ticket}),
             kTicketColumns, "ticket");
  return 0;
}

Result<int> ticket_ls(const Options& options) {
  SNOW_ASSIGN(const nlohmann::json tickets, Client(options.socket).get("/tickets"));
  print_list(options, tickets, kTicketColumns, "ticket");
  return 0;
}

Result<int> ticket_rm(const Options& options) {
  const Client client(options.socket);
  for (const std::string& ticket : options.names) {
    SNOW_TRY(client.remove("/tickets/" + escape(ticket)));
    fmt::print("{}\n", ticket);
  }
  return 0;
}

Result<int> ticket_kill(const Options& options) {
  SNOW_ASSIGN(const nlohmann::json killed,
              Client(options.socket).post("/tickets/" + escape(options.ticket) + "/kill"));
  if (options.format == Format::json) {
    print_object(options, killed);
  } else {
    fmt::print("{}\n", cell(killed, "count"));
  }
  return 0;
}

Result<int> join(const Options& options) {
  nlohmann::json body = nlohmann::json::object();
  if (options.timeout_seconds >= 0) {
    body["timeout_ms"] = static_cast<int64_t>(options.timeout_seconds * 1000);
  }
  const Progress progress(fmt::format("waiting for the clones of ticket '{}'", options.ticket));
  SNOW_ASSIGN(const nlohmann::json joined,
              Client(options.socket).post("/tickets/" + escape(options.ticket) + "/join", body));
  if (options.format == Format::json) {
    print_object(options, joined);
    return 0;
  }
  print_list(options, joined.at("clones"),
             {{"INDEX", "index"},
              {"VM", "vm"},
              {"HOW", "how"},
              {"STATUS", "status"},
              {"RESULT (BASE64)", "result"}},
             "index");
  return 0;
}

}  // namespace snow::cli
