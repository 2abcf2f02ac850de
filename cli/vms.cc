// run, ps, inspect, and what changes the state of VMs.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "api/text.h"
#include "base/file.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/each.h"
#include "cli/output.h"

namespace snow::cli {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(50);

std::string vm_path(const std::string& vm, const std::string& verb = "") {
  return "/vms/" + escape(vm) + verb;
}

// Waits until the VM runs and its agent has answered, or `seconds` are over (then it just runs).
// The newest state, or an error when the guest ended.
Result<nlohmann::json> wait_until_up(const Client& client, nlohmann::json vm, unsigned seconds) {
  const std::string id = vm.at("id");
  const Progress progress(fmt::format("waiting for the agent of '{}'", vm.value("name", id)));
  const int64_t deadline = monotonic_ns() + int64_t{seconds} * 1'000'000'000;
  for (;;) {
    const std::string state = vm.value("state", "");
    if (state == "crashed" || state == "exited") {
      return fail(Code::guest_failed,
                  "VM '{}': {} before its agent answered; `snow logs {}` shows its console",
                  vm.value("name", id), state, id);
    }
    if (vm.value("agent", false)) return vm;
    if (monotonic_ns() > deadline && state != "starting") {
      note(
          fmt::format("VM '{}': runs, but no agent has answered within {} s; --detach does not "
                      "wait for one",
                      vm.value("name", id), seconds));
      return vm;
    }
    std::this_thread::sleep_for(kPoll);
    SNOW_ASSIGN(vm, client.get(vm_path(id)));
  }
}

Result<int> post_each(const Options& options, const char* verb, const char* doing,
                      const nlohmann::json& body = nlohmann::json::object()) {
  const Client client(options.socket);
  return for_each(options, [&](const std::string& vm) {
    const Progress progress(fmt::format("{} '{}'", doing, vm));
    return client.post(vm_path(vm, verb), body);
  });
}

}  // namespace

Result<std::map<std::string, std::string>> pairs_of(const std::string& option,
                                                    const std::vector<std::string>& words) {
  std::map<std::string, std::string> pairs;
  for (const std::string& word : words) {
    SNOW_ASSIGN(auto pair, parse_key_value(option, word));
    pairs[pair.first] = pair.second;
  }
  return pairs;
}

Result<int> run(const Options& options) {
  nlohmann::json body = nlohmann::json::object();
  const auto set = [&](const char* field, const std::string& value) {
    if (!value.empty()) body[field] = value;
  };
  set("image", options.image);
  set("from", options.from);
  set("name", options.name);
  set("accelerator", options.accelerator);
  set("network", options.network);
  set("machine", options.machine);
  if (!options.kernel.empty()) body["kernel"] = std::filesystem::absolute(options.kernel).string();
  if (!options.initrd.empty()) body["initrd"] = std::filesystem::absolute(options.initrd).string();
  if (options.has_append) body["append"] = options.append;
  if (!options.memory.empty()) {
    SNOW_ASSIGN(const uint64_t memory, parse_size("--memory", options.memory));
    body["memory"] = memory;
  }
  if (options.cpus != 0) body["cpus"] = options.cpus;
  if (options.has_count) body["count"] = options.count;
  SNOW_ASSIGN(const auto environment, pairs_of("--env", options.environment));
  if (!environment.empty()) body["environment"] = environment;

  const Client client(options.socket);
  nlohmann::json vms;
  {
    const Progress progress("starting");
    SNOW_ASSIGN(vms, client.post("/vms", body));
  }
  if (!options.detach) {
    for (nlohmann::json& vm : vms) {
      SNOW_ASSIGN(vm, wait_until_up(client, vm, options.wait_seconds));
    }
  }
  print_vms(options, vms);
  return 0;
}

Result<int> ps(const Options& options) {
  SNOW_ASSIGN(const nlohmann::json vms,
              Client(options.socket).get(options.all ? "/vms?all=true" : "/vms"));
  print_vms(options, vms);
  return 0;
}

Result<int> inspect(const Options& options) {
  const Client client(options.socket);
  nlohmann::json list = nlohmann::json::array();
  for (const std::string& name : options.names) {
    SNOW_ASSIGN(nlohmann::json vm, client.get(vm_path(name)));
    list.push_back(std::move(vm));
  }
  if (list.size() == 1) {
    print_object(options, list[0]);
  } else if (options.format == Format::name) {
    print_vms(options, list);
  } else {
    print_object(options, list);
  }
  return 0;
}

Result<int> pause(const Options& options) { return post_each(options, "/pause", "pausing"); }
Result<int> resume(const Options& options) { return post_each(options, "/resume", "resuming"); }
Result<int> kill(const Options& options) { return post_each(options, "/kill", "killing"); }

Result<int> stop(const Options& options) {
  nlohmann::json body = nlohmann::json::object();
  if (options.timeout_seconds >= 0) {
    body["timeout_ms"] = static_cast<int64_t>(options.timeout_seconds * 1000);
  }
  return post_each(options, "/stop", "stopping", body);
}

Result<int> vm_detach(const Options& options) {
  nlohmann::json body = nlohmann::json::object();
  if (options.timeout_seconds >= 0) {
    body["timeout_ms"] = static_cast<int64_t>(options.timeout_seconds * 1000);
  }
  return post_each(options, "/detach", "fetching what is missing of", body);
}

Result<int> rm(const Options& options) {
  const Client client(options.socket);
  return for_each(options, [&](const std::string& vm) -> Result<nlohmann::json> {
    const Progress progress(fmt::format("removing '{}'", vm));
    SNOW_TRY(client.remove(vm_path(vm, options.force ? "?force=true" : "")));
    return nlohmann::json(vm);
  });
}

}  // namespace snow::cli
