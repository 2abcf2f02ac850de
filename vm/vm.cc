#include "vm/vm.h"

#include <array>

#include "base/file.h"
#include "vm/time_text.h"

namespace snow {
namespace {

constexpr std::array<const char*, 6> kStates = {"starting", "running", "paused",
                                                "stopping", "crashed", "exited"};

nlohmann::json or_null(const std::string& text) {
  return text.empty() ? nlohmann::json(nullptr) : nlohmann::json(text);
}

}  // namespace

const char* state_name(VmState state) { return kStates[static_cast<size_t>(state)]; }

std::string utc_now() { return rfc3339(wall_clock_ns()); }

nlohmann::json steps_to_json(const Steps& steps) {
  nlohmann::json json = nlohmann::json::object();
  for (const auto& [name, milliseconds] : steps) json[name] = milliseconds;
  return json;
}

nlohmann::json vm_to_json(const Vm& vm) {
  nlohmann::json json = {{"id", vm.id},
                         {"name", vm.name},
                         {"state", state_name(vm.state)},
                         {"image", vm.image},
                         {"snapshot", or_null(vm.snapshot)},
                         {"parent", or_null(vm.parent)},
                         {"generation", vm.generation},
                         {"ticket", or_null(vm.ticket)},
                         {"index", vm.index},
                         {"memory", vm.config.memory_bytes},
                         {"cpus", vm.config.cpus},
                         {"machine", vm.config.machine == MachineType::q35 ? "q35" : "microvm"},
                         {"accelerator", vm.config.accelerator == Accelerator::kvm ? "kvm" : "tcg"},
                         {"network", vm.config.network == Network::user ? "user" : "none"},
                         {"mac", vm.mac},
                         {"uuid", vm.uuid},
                         {"agent", vm.agent},
                         {"created", vm.created},
                         {"ended", or_null(vm.ended)},
                         {"undone", vm.undone},
                         {"steps", steps_to_json(vm.steps)}};
  json["pid"] = vm.process ? nlohmann::json(vm.process->pid()) : nlohmann::json(nullptr);
  json["exit"] = nullptr;
  if (vm.ended_already()) {
    json["exit"] = {{"how", vm.exit.how}, {"status", vm.exit.status}};
    if (!vm.exit.message.empty()) json["exit"]["message"] = vm.exit.message;
  }
  return json;
}

nlohmann::json vm_to_record(const Vm& vm) {
  nlohmann::json json = {{"id", vm.id},
                         {"name", vm.name},
                         {"state", static_cast<int>(vm.state)},
                         {"config", to_json(vm.config)},
                         {"image", vm.image},
                         {"snapshot", vm.snapshot},
                         {"parent", vm.parent},
                         {"ticket", vm.ticket},
                         {"home", vm.home},
                         {"index", vm.index},
                         {"count", vm.count},
                         {"generation", vm.generation},
                         {"children", vm.children},
                         {"uuid", vm.uuid},
                         {"mac", vm.mac},
                         {"created", vm.created},
                         {"ended", vm.ended},
                         {"how", vm.exit.how},
                         {"status", vm.exit.status},
                         {"message", vm.exit.message},
                         {"agent", vm.agent},
                         {"had_agent", vm.had_agent},
                         {"undone", vm.undone},
                         {"environment", vm.environment},
                         {"parameters", vm.parameters}};
  json["process"] = vm.process ? vm.process->to_json() : nlohmann::json(nullptr);
  if (vm.process) json["boot"] = vm.process->ground().boot->to_json();
  json["over"] = vm.over ? vm.over->id() : "";
  json["steps"] = vm.steps;
  return json;
}

Result<std::shared_ptr<Vm>> vm_from_record(const nlohmann::json& record) {
  auto vm = std::make_shared<Vm>();
  SNOW_ASSIGN(vm->config, machine_config_from_json(record.at("config")));
  vm->id = record.at("id");
  vm->name = record.at("name");
  vm->state = static_cast<VmState>(record.at("state").get<unsigned>() % kStates.size());
  vm->image = record.at("image");
  vm->snapshot = record.at("snapshot");
  vm->parent = record.at("parent");
  vm->ticket = record.at("ticket");
  vm->home = record.value("home", "");
  vm->index = record.at("index");
  vm->count = record.at("count");
  vm->generation = record.at("generation");
  vm->children = record.at("children");
  vm->uuid = record.at("uuid");
  vm->mac = record.at("mac");
  vm->created = record.at("created");
  vm->ended = record.at("ended");
  vm->exit = {record.at("how"), record.at("status"), record.at("message")};
  vm->agent = record.at("agent");
  vm->had_agent = record.value("had_agent", true);
  vm->undone = record.at("undone").get<std::vector<std::string>>();
  vm->environment = record.at("environment").get<std::map<std::string, std::string>>();
  vm->parameters = record.at("parameters").get<std::map<std::string, std::string>>();
  vm->steps = record.at("steps").get<Steps>();
  return vm;
}

}  // namespace snow
