// Run: from an image to a VM that runs.
#include <algorithm>

#include "base/file.h"
#include "base/log.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

constexpr uint64_t kDefaultMemory = 256u << 20;

}  // namespace

Result<MachineConfig> HostImpl::config_of(const RunRequest& request, const StoredImage& image) {
  MachineConfig config;
  config.has_disk = image.has_disk;
  config.has_kernel = image.has_kernel || !request.kernel.empty();
  config.has_initrd = config.has_kernel && (image.has_initrd || !request.initrd.empty());
  config.append = request.append.value_or(image.append);
  config.memory_bytes = request.memory_bytes != 0 ? request.memory_bytes
                        : image.memory_bytes != 0 ? image.memory_bytes
                                                  : kDefaultMemory;
  config.cpus = request.cpus != 0 ? request.cpus : std::max(image.cpus, 1u);
  config.network = request.network == "user" ? Network::user : Network::none;
  config.machine = config.has_kernel ? MachineType::microvm : MachineType::q35;
  if (request.machine == "q35") config.machine = MachineType::q35;
  if (request.machine == "microvm") config.machine = MachineType::microvm;
  config.accelerator = accelerator_.accelerator;
  if (request.accelerator == "kvm") config.accelerator = Accelerator::kvm;
  if (request.accelerator == "tcg") config.accelerator = Accelerator::tcg;
  if (config.machine == MachineType::microvm && !config.has_kernel) {
    return fail(Code::invalid, "machine microvm: it needs a kernel; give --kernel, or use q35");
  }
  if (!config.has_disk && !config.has_kernel) {
    return fail(Code::invalid, "image '{}': neither a disk nor a kernel to boot", image.name);
  }
  if (!request.initrd.empty() && !config.has_kernel) {
    return fail(Code::invalid, "--initrd without a kernel: give --kernel too");
  }
  SNOW_TRY(check(config));
  return config;
}

Result<std::shared_ptr<LazyFile>> HostImpl::image_disk(const StoredImage& image) {
  const std::lock_guard lock(mutex_);
  if (auto open = image_disks_[image.name].lock()) return open;
  SNOW_ASSIGN(auto content, Image::of_file(image.disk_path, image.size_bytes, false));
  SNOW_ASSIGN(auto file, LazyFile::show(context_, std::move(content)));
  SNOW_TRY(context_.store->put("image_disk", image.name,
                               {{"number", file->number()}, {"size", file->size()}}));
  image_disks_[image.name] = file;
  return file;
}

Result<nlohmann::json> HostImpl::run(const RunRequest& request) {
  if (const auto cluster = context_.cluster()) SNOW_TRY(cluster->may_start());
  if (!request.from.empty()) return run_snapshot(request);
  return run_image(request);
}

Result<nlohmann::json> HostImpl::run_image(const RunRequest& request) {
  if (request.count != 1) {
    return fail(Code::invalid, "count {}: only `--from SNAPSHOT` starts several", request.count);
  }
  SNOW_TRY(check_parameters({}, request.environment));
  SNOW_ASSIGN(const StoredImage image, context_.images->find(request.image));
  SNOW_ASSIGN(const MachineConfig config, config_of(request, image));
  SNOW_ASSIGN(auto room, context_.admission->reserve(
                             {.memory_bytes = config.memory_bytes, .cpus = config.cpus}));
  Ground ground;
  if (config.has_disk) {
    SNOW_ASSIGN(ground.disk, image_disk(image));
  }
  ground.boot = BootFiles::at(image.kernel_path, image.initrd_path);
  if (!request.kernel.empty() || !request.initrd.empty()) {
    SNOW_ASSIGN(ground.boot,
                BootFiles::copy_of(context_, request.kernel, request.initrd, *ground.boot));
  }
  auto vm = std::make_shared<Vm>();
  std::unique_lock operation(vm->operation);
  {
    const std::lock_guard lock(mutex_);
    SNOW_ASSIGN(vm->name, free_name(request.name));
    vm->id = random_hex(6);
    vm->config = config;
    vm->image = image.name;
    vm->uuid = random_uuid();
    vm->mac = config.network == Network::user ? context_.macs.take() : "";
    vm->created = utc_now();
    vm->environment = request.environment;
    vm->room = std::move(room);
    vms_[vm->id] = vm;
    boot_files_[ground.boot->folder()] = ground.boot;
  }
  context_.events.add("starting", vm->id, {{"name", vm->name}, {"image", vm->image}});
  const int64_t since = monotonic_ns();
  const auto started = [&]() -> Result<void> {
    const Launch launch{Launch::Kind::boot, vm->name, vm->uuid, vm->mac};
    SNOW_ASSIGN(auto process, QemuProcess::start(context_, config, launch, ground));
    note_process(process);
    {
      const std::lock_guard lock(mutex_);
      vm->process = process;
    }
    save(*vm);
    attach(vm);
    SNOW_TRY(connect(vm, GuestLink::Start::boot));
    return process->go_on();
  }();
  if (!started) {
    end_vm(vm, VmState::crashed, {"crashed", 0, started.error().message});
    {
      const std::lock_guard lock(mutex_);
      vms_.erase(vm->id);
    }
    (void)context_.store->remove("vm", vm->id);
    remove_all(context_.settings.run_dir + "/vms/" + vm->id);
    return within("VM '" + vm->name + "'", started.error());
  }
  {
    const std::lock_guard lock(mutex_);
    vm->steps = {{"start", static_cast<double>(monotonic_ns() - since) / 1e6}};
  }
  set_state(vm, VmState::running);
  operation.unlock();  // the agent's hello takes it
  if (request.wait_for_agent) wait_for_agent(vm);
  return nlohmann::json::array({describe(vm)});
}

}  // namespace snow
