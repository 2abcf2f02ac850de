// Start and end of the daemon's host, and what it takes over from an earlier daemon.
//
// What the record must answer after a kill -9 at any moment: which QEMU runs each VM ("vm"), what
// the lazyfs numbers that QEMUs have mapped show ("frozen", "image_disk"), which fork was under way
// and whether its point of no return was passed ("fork"), and what is owed to whom ("ticket",
// "checkpoint"). Everything else that is found (processes, files) is an orphan and goes.
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "base/log.h"
#include "base/process.h"
#include "vm/host_impl.h"

namespace snow {
namespace {

constexpr size_t kWorkers = 8;
constexpr auto kTick = std::chrono::milliseconds(200);
constexpr long kTmpfsMagic = 0x01021994;

uint64_t host_memory_bytes() {
  return static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
         static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

Result<std::unique_ptr<Host>> Host::open(const Settings& settings) {
  auto host = std::make_unique<HostImpl>(settings);
  SNOW_TRY(host->start());
  return host;
}

HostImpl::HostImpl(const Settings& settings) {
  context_.settings = settings;
  auto& s = context_.settings;
  // The keeper binds no path that has a symbolic link in it.
  std::error_code error;
  for (std::string* path : {&s.state_dir, &s.run_dir}) {
    const auto canonical = std::filesystem::weakly_canonical(*path, error);
    if (!error) *path = canonical.string();
  }
  if (s.memory_limit_bytes == 0) s.memory_limit_bytes = 4 * host_memory_bytes();
  if (s.vcpu_limit == 0) s.vcpu_limit = 64 * std::max(1u, std::thread::hardware_concurrency());
}

Result<void> HostImpl::start() {
  SNOW_TRY(make_run_dir());
  SNOW_TRY(open_services());
  std::map<pid_t, KeptProcess> kept;
  {
    SNOW_ASSIGN(const auto list, context_.keeper->list());
    for (const KeptProcess& process : list) {
      if (process.running) {
        kept[process.pid] = process;
      } else {
        context_.keeper->forget(process.pid);
      }
    }
  }
  if (context_.keeper->started_now()) remove_all(context_.settings.run_dir + "/p");
  SNOW_TRY(make_folders(context_.settings.run_dir + "/p", 0711));
  workers_ = std::make_unique<Workers>(kWorkers);
  SNOW_TRY(restore_record());
  SNOW_TRY(context_.lazyfs->start());
  SNOW_TRY(context_.keeper->keep_fuse_fd(context_.lazyfs->fuse_fd()));
  settler_ = std::make_unique<Settler>(
      [this](const Frozen& mine, const Layer& layer) {
        const std::lock_guard lock(mutex_);
        for (const auto& [id, weak] : frozen_) {
          const auto other = weak.lock();
          if (!other || other.get() == &mine) continue;
          for (const auto& file : {other->ground().memory, other->ground().disk}) {
            if (!file || !file->image()) continue;
            for (const auto& used : file->image()->layers()) {
              if (used.get() == &layer) return false;
            }
          }
        }
        return true;
      },
      [this] { changed_.notify_all(); });
  context_.keeper->on_exit([this](const KeptProcess& process) { process_ended(process); });
  context_.keeper->on_lost([this] { workers_->post([this] { keeper_lost(); }); });
  restore_vms(kept);
  restore_tickets();
  remove_orphans(kept);
  ticker_ = std::thread([this] { tick(); });
  return {};
}

Result<void> HostImpl::make_run_dir() {
  const auto& settings = context_.settings;
  SNOW_ASSIGN(context_.store, Store::open(settings.state_dir));
  SNOW_TRY(make_folders(settings.run_dir, 0755));
  SNOW_TRY(mount_ram());
  for (const std::string& folder :
       {context_.disk_dir(), context_.frozen_dir(), context_.result_dir(), context_.snapshot_dir(),
        context_.boot_dir(), settings.run_dir + "/vms"}) {
    SNOW_TRY(make_folders(folder, 0711));
  }
  for (const auto& entry : std::filesystem::directory_iterator(context_.snapshot_dir())) {
    if (entry.path().filename().string().starts_with(".new-")) remove_all(entry.path());
  }
  return {};
}

Result<void> HostImpl::mount_ram() {
  const std::string folder = context_.ram_dir();
  SNOW_TRY(make_folders(folder, 0711));
  struct stat ours {};
  struct stat above {};
  if (::stat(folder.c_str(), &ours) == 0 &&
      ::stat(context_.settings.run_dir.c_str(), &above) == 0 && ours.st_dev != above.st_dev) {
    return {};  // an earlier daemon's
  }
  if (::mount("thundersnow-ram", folder.c_str(), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
              "size=90%,nr_inodes=1m,mode=0711") < 0) {
    return fail_errno(Code::host_failed, "{}: cannot mount a tmpfs for the guests' memory", folder);
  }
  return {};
}

Result<void> HostImpl::open_services() {
  const auto& settings = context_.settings;
  auto version = run_process({settings.qemu, "--version"});
  if (!version || version->exit_code != 0) {
    return fail(Code::host_failed, "{}: cannot be run; install qemu-system-x86 (`snow doctor`)",
                settings.qemu);
  }
  qemu_version_ = version->standard_output.substr(0, version->standard_output.find('\n'));
  accelerator_ = choose_accelerator();
  log_info("{}; accelerator auto is {}: {}", qemu_version_,
           accelerator_.accelerator == Accelerator::kvm ? "KVM" : "TCG", accelerator_.reason);
  SNOW_ASSIGN(context_.images, ImageCatalog::open(settings.state_dir));
  context_.overlays = std::make_unique<OverlayMaker>(settings.run_dir);
  context_.admission = std::make_unique<Admission>(AdmissionLimits{
      settings.memory_limit_bytes, settings.vm_limit, settings.vcpu_limit, settings.fork_limit});
  SNOW_ASSIGN(context_.consoles, ConsoleHub::start());
  SNOW_ASSIGN(context_.keeper, Keeper::connect({settings.run_dir, settings.keeper}));
  SNOW_ASSIGN(const Fd fuse, context_.keeper->fuse_fd());
  SNOW_ASSIGN(const Fd table, context_.keeper->table_fd());
  LazyFs::Options options;
  // FUSE asks nobody's rights here (QEMUs have users of their own): the folder above is closed.
  SNOW_TRY(make_folders(settings.run_dir + "/lazy", 0700));
  options.mount_point = settings.run_dir + "/lazy/mnt";
  options.fuse_fd = fuse.get();
  options.table_fd = table.get();
  options.use_resend = settings.use_resend;
  SNOW_ASSIGN(context_.lazyfs, LazyFs::open(options));
  return {};
}

HostImpl::~HostImpl() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  context_.events.close();
  if (ticker_.joinable()) ticker_.join();
  if (settler_) settler_.reset();
  if (workers_) workers_->stop();
  // Nothing runs any more: with no VM and no frozen machine left, nothing has to stay. Otherwise
  // the VMs go on without us, and the next daemon finds them.
  bool idle = true;
  for (const auto& [id, vm] : vms_) idle = idle && vm->process == nullptr;
  std::map<std::string, TicketPtr> tickets;
  tickets.swap(tickets_);
  for (auto& [id, ticket] : tickets) ticket->reservation.reset();
  tickets.clear();
  if (idle) checkpoints_.clear();
  if (idle && context_.keeper && context_.lazyfs) {
    vms_.clear();
    context_.lazyfs->unmount();
    (void)context_.keeper->shut_down();
    ::umount2(context_.ram_dir().c_str(), MNT_DETACH);
    for (const char* name : {"/ram", "/p", "/lazy", "/templates"}) {
      remove_all(context_.settings.run_dir + name);
    }
  }
  context_.leaving = true;
  vms_.clear();
  checkpoints_.clear();
}

Result<void> HostImpl::restore_record() {
  SNOW_ASSIGN(const auto disks, context_.store->list("image_disk"));
  SNOW_ASSIGN(const auto machines, context_.store->list("frozen"));
  SNOW_ASSIGN(const auto vms, context_.store->list("vm"));
  SNOW_ASSIGN(const auto checkpoints, context_.store->list("checkpoint"));
  std::map<uint64_t, std::shared_ptr<LazyFile>> image_disks;
  if (!context_.keeper->started_now()) {
    for (const auto& [name, json] : disks) {
      const auto image = context_.images->find(name);
      if (!image) {
        log_error("image {}: {}", name, image.error().message);
        continue;
      }
      SNOW_ASSIGN(auto content, Image::of_file(image->disk_path, image->size_bytes, false));
      SNOW_ASSIGN(auto file, LazyFile::restore(context_, json.at("number"), json.at("size"),
                                               std::move(content)));
      image_disks_[name] = file;
      image_disks[file->number()] = file;
    }
  }
  std::vector<nlohmann::json> sorted;
  for (const auto& [id, json] : machines) sorted.push_back(json);
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.at("sequence").template get<int64_t>() < b.at("sequence").template get<int64_t>();
  });
  OpenLayers layers;
  Frozen::Finders finders;
  finders.frozen = [&](const std::string& id) { return restored_[id]; };
  finders.image_disk = [&](uint64_t number) { return image_disks[number]; };
  finders.boot_files = [&](const nlohmann::json& json) { return shared_boot_files(json); };
  finders.layers = &layers;
  for (const auto& json : sorted) {
    const std::string id = json.at("id");
    if (context_.keeper->started_now()) {
      (void)context_.store->remove("frozen", id);
      continue;
    }
    auto frozen = Frozen::restore(context_, json, finders);
    if (!frozen) {
      log_error("frozen machine {}: lost: {}", id, frozen.error().message);
      (void)context_.store->remove("frozen", id);
      continue;
    }
    frozen_[id] = *frozen;
    if (!(*frozen)->snapshot().empty()) snapshots_[(*frozen)->snapshot()] = *frozen;
    restored_[id] = std::move(*frozen);
  }
  for (const auto& [id, json] : checkpoints) {
    const auto it = restored_.find(json.at("frozen"));
    if (it == restored_.end()) {
      (void)context_.store->remove("checkpoint", id);
    } else {
      checkpoints_[id] = {json.at("owner"), it->second, true};
    }
  }
  for (const auto& [id, json] : vms) {
    auto vm = vm_from_record(json);
    if (!vm) {
      log_error("VM {}: its record is damaged: {}", id, vm.error().message);
      continue;
    }
    vms_[id] = *vm;
    records_[id] = json;
    if (json.at("process").is_null()) continue;
    const uint64_t number = json.at("process").at("disk");
    if (image_disks.contains(number)) grounds_[id].disk = image_disks[number];
  }
  return {};
}

std::shared_ptr<BootFiles> HostImpl::shared_boot_files(const nlohmann::json& json) {
  const std::string folder = json.value("folder", "");
  auto& known = boot_files_[folder];
  if (auto open = known.lock(); open && !folder.empty()) return open;
  auto files = BootFiles::from_json(context_, json);
  known = files;
  return files;
}

void HostImpl::restore_vms(const std::map<pid_t, KeptProcess>& kept) {
  const auto forks = context_.store->list("fork");
  for (const auto& [id, vm] : vms_) {
    const std::lock_guard operation(vm->operation);
    if (vm->ended_already()) continue;
    const auto fork = std::find_if(forks->begin(), forks->end(),
                                   [&, wanted = id](const auto& f) { return f.first == wanted; });
    if (fork != forks->end()) {
      finish_fork_under_way(vm, fork->second, kept);
    } else {
      restore_vm(vm, records_[id], kept);
    }
  }
  for (const auto& [id, json] : *forks) (void)context_.store->remove("fork", id);
  for (const auto& [id, frozen] : restored_) {
    if (!frozen->settled()) settler_->add(frozen);
  }
  restored_.clear();
  records_.clear();
  grounds_.clear();
}

void HostImpl::restore_vm(const VmPtr& vm, const nlohmann::json& record,
                          const std::map<pid_t, KeptProcess>& kept) {
  const auto& process_json = record.at("process");
  const auto running = [&]() -> Result<std::string> {
    if (process_json.is_null()) return fail(Code::guest_failed, "it was still being started");
    if (!kept.contains(process_json.at("pid"))) {
      return fail(Code::guest_failed, "its QEMU ended while no daemon ran");
    }
    const std::string over = record.at("over");
    Ground ground = grounds_[vm->id];
    ground.boot = shared_boot_files(record.at("boot"));
    if (!over.empty()) {
      if (!restored_.contains(over)) {
        return fail(Code::corrupt, "the frozen machine {} that it runs on is lost", over);
      }
      vm->over = restored_[over];
      ground = vm->over->ground();
    }
    SNOW_ASSIGN(vm->process, QemuProcess::adopt(context_, process_json, vm->config, ground, true));
    note_process(vm->process);
    SNOW_ASSIGN(const auto status, vm->process->qmp().execute("query-status"));
    return status.value("status", "");
  }();
  if (!running) {
    log_warn("VM {}: {}", vm->name, running.error().message);
    end_vm(vm, VmState::crashed, {"lost", 0, running.error().message});
    return;
  }
  if (!vm->mac.empty()) (void)context_.macs.claim(vm->mac);
  vm->room = context_.admission->admit(vm->config.memory_bytes, vm->config.cpus);
  if (*running == "shutdown" || *running == "internal-error" || *running == "guest-panicked") {
    end_vm(vm, VmState::crashed, {"crashed", 0, "QEMU is " + *running});
    return;
  }
  if (*running == "inmigrate" || *running == "prelaunch") {
    // A clone that had not begun to run: nobody has seen it.
    end_vm(vm, VmState::crashed, {"lost", 0, "the daemon ended before it ran"});
    return;
  }
  attach(vm);
  if (auto connected = connect(vm); !connected) {
    log_error("VM {}: {}", vm->name, connected.error().message);
  }
  // A clone that runs but has not heard who it is is told now; others stand still because someone
  // paused them.
  const bool unannounced = vm->state == VmState::starting && !vm->parent.empty();
  vm->state = *running == "running" ? VmState::running : VmState::paused;
  const bool had_agent = vm->agent;
  if (unannounced) {
    vm->agent = false;
    workers_->post([this, vm] {
      const std::lock_guard operation(vm->operation);
      if (auto done = announce(vm, true); !done) {
        end_vm(vm, VmState::crashed, {"lost", 0, done.error().message});
      }
    });
  } else {
    vm->agent = had_agent;
  }
  log_info("VM {}: {}, taken over", vm->name, state_name(vm->state));
  save(*vm);
}

void HostImpl::finish_fork_under_way(const VmPtr& vm, const nlohmann::json& fork,
                                     const std::map<pid_t, KeptProcess>& kept) {
  // Past the point of no return the parent is the new QEMU if that is alive; if it has not begun to
  // run, or is gone, the frozen machine is thawed once more.
  nlohmann::json record = records_[vm->id];
  const bool passed = fork.contains("frozen") && restored_.contains(fork.at("frozen"));
  const bool had_agent = fork.value("agent", false);
  if (!passed) {
    log_warn("VM {}: a fork was under way when the daemon ended; it is undone", vm->name);
    if (fork.contains("frozen")) log_error("VM {}: its frozen machine is lost", vm->name);
    // A machine that was frozen for it must not take the old QEMU's files with it.
    for (auto& [id, frozen] : restored_) {
      if (!frozen->settled() && frozen->held_pid() == fork.at("old").at("pid").get<pid_t>()) {
        frozen->abandon();
      }
    }
    restore_vm(vm, record, kept);
    if (vm->ended_already()) return;
    undo_freeze(vm, vm->process, true, had_agent);
    vm->state = VmState::running;
    save(*vm);
    return;
  }
  const auto frozen = restored_[fork.at("frozen")];
  record["process"] = fork.at("new");
  record["over"] = frozen->id();
  log_warn("VM {}: a fork was under way when the daemon ended; it is finished", vm->name);
  bool runs = false;
  if (kept.contains(fork.at("new").at("pid"))) {
    auto process = QemuProcess::adopt(context_, fork.at("new"), vm->config, frozen->ground(), true);
    if (process) {
      const auto status = (*process)->qmp().execute("query-status");
      runs = status && status->value("status", "") != "inmigrate" &&
             status->value("status", "") != "prelaunch";
      if (runs) {
        vm->process = *process;
        vm->over = frozen;
        (void)(*process)->go_on();  // it may have been loaded and not continued
        note_process(*process);
        attach(vm);
        if (auto connected = connect(vm); !connected) {
          log_error("VM {}: {}", vm->name, connected.error().message);
        }
      }
    }
  }
  vm->room = context_.admission->admit(vm->config.memory_bytes, vm->config.cpus);
  if (!vm->mac.empty()) (void)context_.macs.claim(vm->mac);
  vm->state = VmState::running;
  // Thawing reads lazyfs, which answers already; guests are spoken to on the workers' time.
  workers_->post([this, vm, frozen, runs, had_agent] {
    const std::lock_guard operation(vm->operation);
    Result<void> done;
    if (!runs) {
      done = thaw(vm, nullptr, frozen);
      if (done) context_.events.add("restored", vm->id, {{"name", vm->name}});
    }
    if (done) done = announce(vm, had_agent, ParentOf{"", 0});
    if (!done) {
      log_error("VM {}: cannot be restored from its frozen machine: {}", vm->name,
                done.error().message);
      end_vm(vm, VmState::crashed, {"lost", 0, done.error().message});
    }
  });
}

void HostImpl::restore_tickets() {
  const auto records = context_.store->list("ticket");
  for (const auto& [id, json] : *records) {
    auto ticket = ticket_from_record(json);
    if (!ticket->forked) {
      log_warn("ticket {}: its waiting QEMUs are given back; it cannot be used any more", id);
      (void)context_.store->remove("ticket", id);
      continue;
    }
    {
      const std::lock_guard lock(mutex_);
      for (CloneEnd& clone : ticket->clones) {
        const auto it = vms_.find(clone.vm);
        if (clone.how != "running") continue;
        if (it == vms_.end()) {
          clone.how = "lost";
        } else if (it->second->ended_already()) {
          clone.how = it->second->exit.how;
          clone.status = it->second->exit.status;
        }
      }
      tickets_[id] = ticket;
    }
    save(*ticket);
  }
}

void HostImpl::remove_orphans(const std::map<pid_t, KeptProcess>& kept) {
  std::set<std::string> used;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [pid, weak] : processes_) {
      if (const auto process = weak.lock()) used.insert(process->key());
    }
    for (const auto& [id, weak] : frozen_) {
      if (const auto frozen = weak.lock()) {
        used.insert(id);
        for (const auto& [pid, process] : kept) {
          if (frozen->held_pid() == pid) used.insert(process.id);
        }
      }
    }
  }
  for (const auto& [pid, process] : kept) {
    if (used.contains(process.id)) continue;
    log_warn("QEMU {} ({}): belongs to no VM any more; ended", pid, process.id);
    (void)context_.keeper->kill(pid);
  }
  // Files are named KEY.something or are a layer of an image.
  std::set<std::string> layers;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, weak] : frozen_) {
      const auto frozen = weak.lock();
      if (!frozen) continue;
      for (const auto& file : {frozen->ground().memory, frozen->ground().disk}) {
        if (!file || !file->image()) continue;
        for (const auto& layer : file->image()->layers()) layers.insert(layer->path());
      }
    }
  }
  for (const std::string& folder :
       {context_.ram_dir(), context_.disk_dir(), context_.frozen_dir()}) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (!entry.is_regular_file()) continue;
      const std::string name = entry.path().stem();
      if (used.contains(name) || layers.contains(entry.path())) continue;
      log_warn("{}: belongs to no VM any more; removed", entry.path().string());
      ::unlink(entry.path().c_str());
    }
  }
}

void HostImpl::process_ended(const KeptProcess& ended) {
  std::shared_ptr<QemuProcess> process;
  VmPtr owner;
  {
    const std::lock_guard lock(mutex_);
    if (const auto it = processes_.find(ended.pid); it != processes_.end()) {
      process = it->second.lock();
      processes_.erase(it);
    }
    for (const auto& [id, vm] : vms_) {
      if (vm->process && vm->process->pid() == ended.pid) owner = vm;
    }
  }
  if (process) process->note_exit();
  ::rmdir(context_.process_dir(ended.id).c_str());
  context_.keeper->forget(ended.pid);
  if (!owner) return;
  workers_->post([this, owner, process, status = ended.status] {
    const std::lock_guard operation(owner->operation);
    {
      const std::lock_guard lock(mutex_);
      if (owner->process != process) return;  // a fork has moved it on, or it has ended
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
      end_vm(owner, VmState::exited, {"shutdown", 0, ""});
    } else if (WIFSIGNALED(status)) {
      end_vm(owner, VmState::crashed,
             {"crashed", WTERMSIG(status),
              fmt::format("its QEMU was killed by signal {}", WTERMSIG(status))});
    } else {
      end_vm(owner, VmState::crashed,
             {"crashed", WEXITSTATUS(status),
              fmt::format("its QEMU ended with exit code {}", WEXITSTATUS(status))});
    }
  });
}

void HostImpl::keeper_lost() {
  log_error("the keeper is gone, and with it every VM; restart the daemon");
  std::vector<VmPtr> vms;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, vm] : vms_) vms.push_back(vm);
  }
  for (const VmPtr& vm : vms) {
    const std::lock_guard operation(vm->operation);
    end_vm(vm, VmState::crashed, {"lost", 0, "the keeper was killed"});
  }
}

void HostImpl::tick() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    changed_.wait_for(lock, kTick, [&] { return stopping_; });
    if (stopping_) return;
    lock.unlock();
    expire_tickets();
    lock.lock();
    std::erase_if(frozen_, [](const auto& entry) { return entry.second.expired(); });
  }
}

Result<nlohmann::json> HostImpl::info() {
  const auto usage = context_.admission->usage();
  const auto& settings = context_.settings;
  return nlohmann::json{
      {"version", SNOW_VERSION},
      {"pid", ::getpid()},
      {"limits",
       {{"memory", settings.memory_limit_bytes},
        {"vms", settings.vm_limit},
        {"fork", settings.fork_limit},
        {"vcpus", settings.vcpu_limit},
        {"ticket_seconds", settings.ticket_seconds}}},
      {"used", {{"memory", usage.memory_bytes}, {"vms", usage.vms}, {"vcpus", usage.vcpus}}},
      {"accelerator",
       {{"name", accelerator_.accelerator == Accelerator::kvm ? "kvm" : "tcg"},
        {"reason", accelerator_.reason}}},
      {"qemu", {{"path", settings.qemu}, {"version", qemu_version_}}},
      {"keeper", {{"pid", 0}}},
      {"lazyfs", {{"mount", settings.run_dir + "/lazy/mnt"}, {"resend", settings.use_resend}}}};
}

}  // namespace snow
