// Images and snapshots. A snapshot is a frozen machine on disk:
// state_dir/snapshots/NAME/{snapshot.json, state, memory, disk.raw, kernel, initrd}, made in a
// folder beside and renamed, so that it is whole or not there.
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "base/names.h"
#include "vm/host_impl.h"

namespace snow {

Result<nlohmann::json> HostImpl::import_image(const ImportRequest& request) {
  SNOW_ASSIGN(const StoredImage image, context_.images->import(request));
  images_changed_ = true;
  context_.events.add("imported", "", {{"image", image.name}});
  return to_json(image);
}

Result<nlohmann::json> HostImpl::images() {
  SNOW_ASSIGN(const auto stored, context_.images->list());
  nlohmann::json list = nlohmann::json::array();
  for (const StoredImage& image : stored) list.push_back(to_json(image));
  return list;
}

Result<nlohmann::json> HostImpl::image(const std::string& name) {
  SNOW_ASSIGN(const StoredImage image, context_.images->find(name));
  return to_json(image);
}

// A frozen machine that other hosts still fetch has its lowest layer in the folder of a snapshot or
// image, whether a VM of it is left here or not: without that file the next daemon could not show
// it. `what` is named in the message. mutex_ is held by the caller.
Result<void> HostImpl::not_fetched_by_others(const std::string& folder,
                                             const std::string& what) const {
  const auto cluster = context_.cluster();
  std::set<std::string> hosts;
  for (const auto& [key, frozen] : holders_) {
    const size_t dot = key.find('.');
    const auto& file = frozen->offered_as(key.substr(0, dot));
    if (!file || !file->image()) continue;
    const auto layers = file->image()->layers();
    if (std::any_of(layers.begin(), layers.end(),
                    [&](const auto& layer) { return layer->path().starts_with(folder + "/"); })) {
      const std::string host = key.substr(dot + 1);
      hosts.insert(cluster ? cluster->name_of(host) : host);
    }
  }
  if (hosts.empty()) return {};
  return fail(Code::wrong_state,
              "{}: clones on host {} still fetch its pages from here; `snow vm detach` or end them "
              "(`snow ps` lists them), then try again",
              what, fmt::join(hosts, ", "));
}

Result<void> HostImpl::remove_image(const std::string& name) {
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, vm] : vms_) {
      if (vm->image == name && vm->snapshot.empty() && !vm->ended_already()) {
        return fail(Code::wrong_state, "image '{}': VM '{}' runs on it; stop that first", name,
                    vm->name);
      }
    }
    SNOW_TRY(not_fetched_by_others(context_.images->path(name), "image '" + name + "'"));
    if (const auto it = image_disks_.find(name);
        it != image_disks_.end() && !it->second.expired()) {
      return fail(Code::wrong_state,
                  "image '{}': a frozen machine still uses it; try again when its "
                  "VMs have ended",
                  name);
    }
    image_disks_.erase(name);
  }
  SNOW_TRY(context_.images->remove(name));
  images_changed_ = true;
  return context_.store->remove("image_disk", name);
}

Result<std::shared_ptr<Frozen>> HostImpl::open_snapshot(const std::string& name) {
  SNOW_TRY(check_name("snapshot", name));
  const std::lock_guard lock(mutex_);
  if (auto open = snapshots_[name].lock()) return open;
  SNOW_ASSIGN(auto frozen, Frozen::open_snapshot(context_, name));
  snapshots_[name] = frozen;
  frozen_[frozen->id()] = frozen;
  return frozen;
}

Result<nlohmann::json> HostImpl::run_snapshot(const RunRequest& request) {
  if (request.memory_bytes != 0 || request.cpus != 0 || request.append || !request.kernel.empty() ||
      !request.initrd.empty() || request.machine != "auto" || request.network != "none" ||
      request.accelerator != "auto") {
    return fail(Code::invalid,
                "snapshot '{}': its machine is what it was; memory, cpus, kernel, initrd, append, "
                "machine, network and accelerator cannot be chosen",
                request.from);
  }
  SNOW_TRY(check_parameters({}, request.environment));
  SNOW_ASSIGN(const auto info, snapshot_info(request.from));
  SNOW_ASSIGN(const auto frozen, open_snapshot(request.from));
  SNOW_ASSIGN(auto room, context_.admission->reserve({.memory_bytes = frozen->config().memory_bytes,
                                                      .cpus = frozen->config().cpus,
                                                      .count = request.count}));
  if (const auto& disk = frozen->ground().disk) SNOW_TRY(context_.overlays->prepare(disk->size()));
  Vm origin;  // what the clones inherit; it does not run
  origin.image = info.value("image", "");
  origin.snapshot = request.from;
  origin.environment = request.environment;
  std::vector<VmPtr> clones;
  const bool had_agent = info.value("agent", false);
  {
    const std::lock_guard lock(mutex_);
    for (unsigned i = 1; i <= request.count; ++i) {
      auto vm = new_clone(origin, *frozen, i, request.count, "", {});
      vm->generation = info.value("generation", 0u) + 1;
      const std::string wanted = request.name.empty() || request.count == 1
                                     ? request.name
                                     : request.name + "." + std::to_string(i);
      auto name = free_name(wanted);
      if (!name) {
        for (const VmPtr& made : clones) vms_.erase(made->id);
        return tl::unexpected<Error>(name.error());
      }
      vm->name = *name;
      vm->room = room.split();
      vms_[vm->id] = vm;
      clones.push_back(std::move(vm));
    }
  }
  for (const VmPtr& vm : clones) {
    save(*vm);
    context_.events.add("starting", vm->id, {{"name", vm->name}, {"snapshot", request.from}});
  }
  Steps steps;
  const unsigned up = bring_up(clones, {}, frozen, had_agent, steps, monotonic_ns());
  if (up < request.count) {
    std::string why;
    for (const VmPtr& vm : clones) {
      if (why.empty()) why = vm->exit.message;
      (void)remove(vm->id, true);
    }
    return fail(Code::host_failed, "snapshot '{}': {} of {} VMs came up: {}; they were ended",
                request.from, up, request.count, why);
  }
  nlohmann::json list = nlohmann::json::array();
  for (const VmPtr& vm : clones) list.push_back(describe(vm));
  return list;
}

Result<nlohmann::json> HostImpl::snapshot(const std::string& vm_name, const std::string& name) {
  SNOW_ASSIGN(const VmPtr vm, find_live(vm_name));
  SNOW_TRY(check_name("snapshot", name));
  const std::string folder = context_.snapshot_dir() + "/" + name;
  {
    const std::lock_guard lock(mutex_);
    if (::access(folder.c_str(), F_OK) == 0 || !snapshots_being_made_.insert(name).second) {
      return fail(Code::exists,
                  "snapshot '{}': the name is taken; choose another, or `snow snapshot "
                  "rm {}` first",
                  name, name);
    }
  }
  auto made = [&]() -> Result<nlohmann::json> {
    const std::lock_guard operation(vm->operation);
    SNOW_ASSIGN(auto reservation, make_reservation(vm, 0, 0, {}, ""));
    SNOW_ASSIGN(auto outcome, fork_vm(vm, std::move(reservation), ForkPlan{}, {}));
    return write_snapshot(*vm, *outcome.frozen, name);
  }();
  const std::lock_guard lock(mutex_);
  snapshots_being_made_.erase(name);
  return made;
}

Result<nlohmann::json> HostImpl::write_snapshot(const Vm& vm, const Frozen& frozen,
                                                const std::string& name) {
  const std::string folder = context_.snapshot_dir() + "/" + name;
  const std::string beside = context_.snapshot_dir() + "/.new-" + name;
  remove_all(beside);
  const auto written = [&]() -> Result<void> {
    SNOW_TRY(make_folders(beside, 0700));
    SNOW_TRY(frozen.write_snapshot(beside));
    nlohmann::json json = {{"name", name},
                           {"vm", vm.id},
                           {"image", vm.image},
                           {"generation", vm.generation},
                           {"agent", vm.agent},
                           {"config", snow::to_json(frozen.config())},
                           {"disk_size", frozen.ground().disk ? frozen.ground().disk->size() : 0},
                           {"created", utc_now()}};
    SNOW_TRY(snow::write_file(beside + "/snapshot.json", json.dump(2)));
    if (::rename(beside.c_str(), folder.c_str()) < 0) {
      return fail_errno(Code::host_failed, "{}: cannot rename to it", folder);
    }
    return {};
  }();
  if (!written) {
    remove_all(beside);
    return within("snapshot '" + name + "'", written.error());
  }
  context_.events.add("snapshot", vm.id, {{"name", name}});
  return snapshot_info(name);
}

Result<nlohmann::json> HostImpl::snapshot_info(const std::string& name) {
  SNOW_TRY(check_name("snapshot", name));
  const std::string folder = context_.snapshot_dir() + "/" + name;
  const auto text = snow::read_file(folder + "/snapshot.json");
  if (!text) {
    return fail(Code::not_found, "snapshot '{}': no such snapshot; `snow snapshot ls` lists them",
                name);
  }
  auto json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object() || !json.contains("config")) {
    return fail(Code::corrupt, "snapshot '{}': {}/snapshot.json is damaged", name, folder);
  }
  SNOW_ASSIGN(const MachineConfig config, machine_config_from_json(json["config"]));
  uint64_t stored = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    struct stat status {};
    if (::stat(entry.path().c_str(), &status) == 0) {
      stored += static_cast<uint64_t>(status.st_blocks) * 512;
    }
  }
  json.erase("config");
  json["memory"] = config.memory_bytes;
  json["cpus"] = config.cpus;
  json["machine"] = config.machine == MachineType::q35 ? "q35" : "microvm";
  json["accelerator"] = config.accelerator == Accelerator::kvm ? "kvm" : "tcg";
  json["network"] = config.network == Network::user ? "user" : "none";
  json["stored"] = stored;
  return json;
}

Result<nlohmann::json> HostImpl::snapshots() {
  nlohmann::json list = nlohmann::json::array();
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(context_.snapshot_dir())) {
    const std::string name = entry.path().filename();
    if (!name.starts_with(".")) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    if (auto info = snapshot_info(name)) {
      list.push_back(std::move(*info));
    } else {
      log_warn("{}", info.error().message);
    }
  }
  return list;
}

Result<void> HostImpl::remove_snapshot(const std::string& name) {
  SNOW_TRY(snapshot_info(name));
  {
    const std::lock_guard lock(mutex_);
    // Also those that have forked since, and their clones: its files are their lowest layers.
    for (const auto& [id, vm] : vms_) {
      if (vm->snapshot == name && !vm->ended_already()) {
        return fail(Code::wrong_state, "snapshot '{}': VM '{}' runs on it; stop that first", name,
                    vm->name);
      }
    }
    SNOW_TRY(
        not_fetched_by_others(context_.snapshot_dir() + "/" + name, "snapshot '" + name + "'"));
    const auto it = snapshots_.find(name);
    if (it != snapshots_.end() && !it->second.expired()) {
      return fail(
          Code::wrong_state,
          "snapshot '{}': a frozen machine still uses it; try again when its VMs have ended", name);
    }
    snapshots_.erase(name);
  }
  // First out of sight, so that half a snapshot is never seen.
  const std::string aside = context_.snapshot_dir() + "/.new-" + random_hex(4);
  if (::rename((context_.snapshot_dir() + "/" + name).c_str(), aside.c_str()) < 0) {
    return fail_errno(Code::host_failed, "snapshot '{}': cannot remove", name);
  }
  remove_all(aside);
  return {};
}

}  // namespace snow
