#include "vm/qemu_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"
#include "qemu/machine_state.h"

namespace snow {
namespace {

constexpr int kControlTimeoutMs = 10'000;

constexpr int kStartTimeoutMs = 60'000;

Fd open_pidfd(pid_t pid) { return Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))); }

}  // namespace

unsigned SlotPool::take() {
  const std::lock_guard lock(mutex_);
  unsigned slot = 1;
  for (const unsigned taken : taken_) {
    if (taken != slot) break;
    ++slot;
  }
  taken_.insert(slot);
  return slot;
}

void SlotPool::claim(unsigned slot) {
  const std::lock_guard lock(mutex_);
  taken_.insert(slot);
}

void SlotPool::give_back(unsigned slot) {
  const std::lock_guard lock(mutex_);
  taken_.erase(slot);
}

QemuProcess::QemuProcess(Context& context, std::string key, const MachineConfig& config,
                         const Ground& ground)
    : context_(context), key_(std::move(key)), config_(config), ground_(ground) {}

Result<std::shared_ptr<QemuProcess>> QemuProcess::start(Context& context,
                                                        const MachineConfig& config,
                                                        const Launch& launch,
                                                        const Ground& ground) {
  std::shared_ptr<QemuProcess> process(new QemuProcess(context, random_hex(6), config, ground));
  process->slot_ = context.slots.take();
  process->has_slot_ = true;
  SNOW_TRY(process->make_files(launch));
  SNOW_TRY(process->spawn(launch));
  if (launch.kind == Launch::Kind::thaw) {
    SNOW_ASSIGN(process->incoming_,
                open_incoming(process->qmp(), process->run_path("incoming.sock")));
  }
  return process;
}

Result<void> QemuProcess::make_files(const Launch& launch) {
  const uid_t uid = context_.settings.uid_base + slot_;
  const std::string run = run_path("");
  SNOW_TRY(make_folders(run, 0700));
  if (::chown(run.c_str(), uid, uid) < 0) {
    return fail_errno(Code::host_failed, "{}: cannot give it to user {}", run, uid);
  }
  if (launch.kind == Launch::Kind::boot) {
    const Fd ram(::open(ram_path().c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!ram || ::ftruncate(ram.get(), static_cast<off_t>(config_.memory_bytes)) < 0 ||
        ::fchown(ram.get(), uid, uid) < 0) {
      return fail_errno(Code::host_failed, "{}: cannot make the RAM file", ram_path());
    }
  }
  if (ground_.disk) {
    SNOW_TRY(context_.overlays->make(ground_.disk->size(), overlay_path(), uid, uid));
  }
  return {};
}

Result<void> QemuProcess::spawn(const Launch& launch) {
  if (config_.network == Network::user) SNOW_TRY(context_.network_guard->ensure());
  SpawnSpec spec;
  spec.id = key_;
  spec.role = launch.kind == Launch::Kind::boot ? "boot" : "thaw";
  spec.argv = command_line(context_.settings.qemu, config_, launch);
  spec.root = context_.process_dir(key_) + "/root";
  spec.uid = context_.settings.uid_base + slot_;
  spec.share_network = config_.network == Network::user;
  spec.no_huge_pages = launch.kind == Launch::Kind::thaw;
  spec.kvm = config_.accelerator == Accelerator::kvm;
  spec.log_path = context_.process_dir(key_) + "/qemu.log";
  spec.binds.push_back({run_path(""), "/vm/run", true});
  spec.binds.push_back(
      {ground_.memory ? ground_.memory->path() : ram_path(), JailPaths::kMemory, true});
  if (ground_.disk) {
    spec.binds.push_back({overlay_path(), JailPaths::kOverlay, true});
    spec.binds.push_back({ground_.disk->path(), JailPaths::kDisk, false});
  }
  if (config_.has_kernel) spec.binds.push_back({ground_.boot->kernel(), JailPaths::kKernel, false});
  if (config_.has_initrd) spec.binds.push_back({ground_.boot->initrd(), JailPaths::kInitrd, false});
  SNOW_ASSIGN(pid_, context_.keeper->spawn(spec));
  pidfd_ = open_pidfd(pid_);
  auto qmp = Qmp::connect(run_path("qmp.sock"), kStartTimeoutMs,
                          [pid = pid_] { return ::kill(pid, 0) == 0; });
  if (!qmp) {
    const auto log = read_file(spec.log_path, 1 << 20).value_or("");
    return within("QEMU did not start",
                  Error{qmp.error().code, qmp.error().message + (log.empty() ? "" : "; it said: ") +
                                              log.substr(0, 2000)});
  }
  qmp_ = std::move(*qmp);
  return {};
}

Result<std::shared_ptr<QemuProcess>> QemuProcess::adopt(Context& context,
                                                        const nlohmann::json& record,
                                                        const MachineConfig& config,
                                                        const Ground& ground, bool connect) {
  std::shared_ptr<QemuProcess> process(
      new QemuProcess(context, record.at("key").get<std::string>(), config, ground));
  process->slot_ = record.at("slot").get<unsigned>();
  process->has_slot_ = true;
  process->pid_ = record.at("pid").get<pid_t>();
  process->pidfd_ = open_pidfd(process->pid_);
  context.slots.claim(process->slot_);
  if (connect) SNOW_TRY(process->connect_control(kControlTimeoutMs));
  return process;
}

Result<void> QemuProcess::connect_control(int timeout_ms) {
  SNOW_ASSIGN(qmp_, Qmp::connect(run_path("qmp.sock"), timeout_ms,
                                 [pid = pid_] { return ::kill(pid, 0) == 0; }));
  return {};
}

QemuProcess::~QemuProcess() {
  link_.reset();
  qmp_.reset();
  if (context_.leaving) return;
  if (pid_ > 0 && !ended_) {
    auto killed = context_.keeper->kill(pid_);
    // not_found: it ended this moment, and who was told had the keeper forget it.
    if (!killed && killed.error().code != Code::not_found) {
      log_warn("QEMU {} ({}): {}", pid_, key_, killed.error().message);
    }
  }
  remove_files();
  if (has_slot_) context_.slots.give_back(slot_);
}

void QemuProcess::remove_files() {
  if (!ram_given_) ::unlink(ram_path().c_str());
  if (!overlay_given_) ::unlink(overlay_path().c_str());
  remove_all(run_path(""));
  ::unlink((context_.process_dir(key_) + "/qemu.log").c_str());
  // The keeper removes the jail's root when it has reaped the process; whoever is last removes the
  // folder (the host does it when the exit is reported).
  ::rmdir(context_.process_dir(key_).c_str());
}

nlohmann::json QemuProcess::to_json() const {
  nlohmann::json json = {{"key", key_}, {"slot", slot_}, {"pid", pid_}};
  json["memory"] = ground_.memory ? ground_.memory->number() : 0;
  json["disk"] = ground_.disk ? ground_.disk->number() : 0;
  return json;
}

std::string QemuProcess::ram_path() const { return context_.ram_dir() + "/" + key_ + ".ram"; }
std::string QemuProcess::overlay_path() const {
  return context_.disk_dir() + "/" + key_ + ".qcow2";
}
std::string QemuProcess::run_path(const std::string& name) const {
  const std::string folder = context_.process_dir(key_) + "/run";
  return name.empty() ? folder : folder + "/" + name;
}

Result<void> QemuProcess::stop() {
  SNOW_TRY(qmp_->execute("stop", {}, 60'000));
  return {};
}

Result<void> QemuProcess::go_on() {
  SNOW_TRY(qmp_->execute("cont", {}, 60'000));
  return {};
}

Result<std::vector<std::byte>> QemuProcess::save_state() {
  return save_machine_state(*qmp_, run_path("state"));
}

Result<void> QemuProcess::load_state(const std::vector<std::byte>& state) {
  return load_machine_state(*qmp_, std::move(incoming_), state);
}

Result<void> QemuProcess::connect_link(GuestLink::Callbacks callbacks, GuestLink::Start start) {
  SNOW_ASSIGN(link_, GuestLink::connect(run_path("agent.sock"), std::move(callbacks), start));
  return {};
}

bool QemuProcess::ends_within(int timeout_ms) const {
  if (ended_ || !pidfd_) return true;
  pollfd ended{pidfd_.get(), POLLIN, 0};
  return ::poll(&ended, 1, timeout_ms) != 0;
}

void QemuProcess::kill() {
  if (!ended_) (void)context_.keeper->kill(pid_);
}

uint64_t QemuProcess::private_bytes() const {
  const auto text = read_file("/proc/" + std::to_string(pid_) + "/smaps_rollup");
  if (!text) return 0;
  uint64_t total = 0;
  for (const char* name : {"\nPrivate_Dirty:", "\nPrivate_Clean:"}) {
    const size_t at = text->find(name);
    if (at != std::string::npos) {
      total += std::strtoull(text->c_str() + at + std::strlen(name), nullptr, 10) * 1024;
    }
  }
  return total;
}

}  // namespace snow
