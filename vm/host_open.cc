// Start and end of the daemon's host. host_restore.cc has what it takes over from an earlier
// daemon.
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
  context_.fault.set(settings.fault);
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
  Found found;
  {
    SNOW_ASSIGN(const auto list, context_.keeper->list());
    for (const KeptProcess& process : list) {
      (process.running ? found.running : found.ended)[process.id] = process;
      if (!process.running) context_.keeper->forget(process.pid);
    }
  }
  if (context_.keeper->started_now()) remove_all(context_.settings.run_dir + "/p");
  SNOW_TRY(make_folders(context_.settings.run_dir + "/p", 0711));
  // Before anything new is made: what is in this list and belongs to nobody is an orphan.
  for (const std::string& folder :
       {context_.ram_dir(), context_.disk_dir(), context_.frozen_dir(), context_.boot_dir(),
        context_.result_dir(), context_.cache_dir(), context_.settings.run_dir + "/p",
        context_.settings.run_dir + "/vms"}) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path() != context_.frozen_dir()) found.paths.push_back(entry.path());
    }
  }
  workers_ = std::make_unique<Workers>(kWorkers);
  SNOW_ASSIGN(context_.outbox, Outbox::open(*context_.store, [this](const Outbox::Item& item) {
                return deliver(item);
              }));
  SNOW_TRY(open_cluster());
  SNOW_TRY(restore_record());
  SNOW_TRY(context_.keeper->keep_fuse_fd(context_.lazyfs->fuse_fd()));
  SNOW_TRY(context_.lazyfs->start());
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
  restore_vms(found);
  restore_tickets();
  if (const auto cluster = context_.cluster()) {
    restore_offers(*cluster);
    cluster->images().release_others();
  }
  remove_orphans(found);
  for (const auto& frozen : unsettled_) settler_->add(frozen);
  unsettled_.clear();
  restored_.clear();
  records_.clear();
  grounds_.clear();
  start_waiting_for_silent();
  if (const auto cluster = context_.cluster()) SNOW_TRY(cluster->listen());
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
        context_.boot_dir(), context_.cache_dir(), context_.kernel_dir(),
        settings.run_dir + "/vms"}) {
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
  context_.network_guard = std::make_unique<NetworkGuard>(settings.run_dir, settings.uid_base);
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
  if (silent_thread_.joinable()) silent_thread_.join();
  const auto cluster = context_.cluster();
  if (cluster) cluster->stop_serving();
  if (context_.outbox) context_.outbox->stop();
  given_rooms_.clear();
  if (settler_) settler_.reset();
  if (workers_) workers_->stop();
  // What ends from now on is the next daemon's to hear of: nobody else looks at the VMs any more.
  if (context_.keeper) {
    context_.keeper->on_exit({});
    context_.keeper->on_lost({});
  }
  // Nothing runs any more: with no VM and no frozen machine left, nothing has to stay. Otherwise
  // the VMs go on without us, and the next daemon finds them.
  bool idle = true;
  for (const auto& [id, vm] : vms_) idle = idle && vm->ended_already();
  idle = idle && holders_.empty();  // other hosts fetch from here
  std::map<std::string, TicketPtr> tickets;
  tickets.swap(tickets_);
  for (auto& [id, ticket] : tickets) ticket->reservation.reset();
  tickets.clear();
  if (idle) checkpoints_.clear();
  if (idle && context_.keeper && context_.lazyfs) {
    vms_.clear();
    context_.lazyfs->unmount();
    (void)context_.keeper->shut_down();
    context_.network_guard->remove();
    ::umount2(context_.ram_dir().c_str(), MNT_DETACH);
    for (const char* name : {"/ram", "/p", "/lazy", "/templates"}) {
      remove_all(context_.settings.run_dir + name);
    }
  }
  context_.leaving = true;
  if (cluster) cluster->images().leave();
  {
    const std::unique_lock lock(feed_mutex_);
    feeding_ = false;
  }
  vms_.clear();
  checkpoints_.clear();
  holders_.clear();
  // Reads that wait for other hosts are left to the next daemon, before the exchange ends them.
  context_.lazyfs.reset();
  if (cluster) cluster->stop();
  // Their callbacks refer to this object.
  GuestLink::settle();
  context_.keeper.reset();
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
    changed_.wait_for(lock, kTick, [&] { return stopping_.load(); });
    if (stopping_) return;
    lock.unlock();
    expire_tickets();
    context_.network_guard->refresh();
    tick_cluster();
    save_again();
    lock.lock();
    std::erase_if(frozen_, [](const auto& entry) { return entry.second.expired(); });
  }
}

Result<nlohmann::json> HostImpl::info() {
  const auto usage = context_.admission->usage();
  const auto& settings = context_.settings;
  const auto cluster = context_.cluster();
  nlohmann::json about_cluster;
  if (cluster) {
    about_cluster = cluster->about();
    const std::lock_guard lock(mutex_);
    about_cluster["held"] = holders_.size();
  }
  return nlohmann::json{
      {"version", SNOW_VERSION},
      {"cluster", about_cluster},
      {"pid", ::getpid()},
      {"last_event", context_.events.last()},
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
      {"keeper", {{"pid", context_.keeper->pid()}}},
      {"lazyfs", {{"mount", settings.run_dir + "/lazy/mnt"}, {"resend", settings.use_resend}}}};
}

}  // namespace snow
