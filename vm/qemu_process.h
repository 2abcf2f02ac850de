// One QEMU of ours: its jail, sockets and files, from start to end. A VM is run by one QEMU after
// the other (every fork moves the parent to a new one); a waiting QEMU (a shell) belongs to no VM
// yet.
//
// Thread-safe except where said. Destroying it ends the process and removes what is only its own,
// unless the daemon is leaving (Context::leaving).
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "guestlink/link.h"
#include "qemu/machine.h"
#include "qemu/qmp.h"
#include "vm/boot_files.h"
#include "vm/context.h"
#include "vm/lazy_file.h"

namespace snow {

// What a QEMU stands on; shared with other QEMUs.
struct Ground {
  std::shared_ptr<LazyFile> memory;  // null: a first boot, its RAM is a file of its own
  std::shared_ptr<LazyFile> disk;    // null: no disk
  std::shared_ptr<BootFiles> boot;
};

class QemuProcess {
 public:
  // Starts QEMU (it waits: -S, and for an incoming state if `ground.memory` is there) and connects
  // to its control socket. `launch.name` etc. are the VM's; a shell of a ticket gets the parent's.
  static Result<std::shared_ptr<QemuProcess>> start(Context& context, const MachineConfig& config,
                                                    const Launch& launch, const Ground& ground);
  // One that an earlier daemon started and that is still there. `connect`: to its control socket
  // (one that only holds a frozen memory does not need it).
  static Result<std::shared_ptr<QemuProcess>> adopt(Context& context, const nlohmann::json& record,
                                                    const MachineConfig& config,
                                                    const Ground& ground, bool connect);
  // To the control socket, of one that was adopted without; not thread-safe against qmp().
  // Code::timed_out: QEMU is busy (it may wait for a page of its guest's memory); try again.
  Result<void> connect_control(int timeout_ms);
  ~QemuProcess();
  QemuProcess(const QemuProcess&) = delete;
  QemuProcess& operator=(const QemuProcess&) = delete;

  [[nodiscard]] const std::string& key() const { return key_; }
  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const Ground& ground() const { return ground_; }
  [[nodiscard]] const MachineConfig& config() const { return config_; }
  [[nodiscard]] Qmp& qmp() const { return *qmp_; }
  [[nodiscard]] nlohmann::json to_json() const;  // for the record

  [[nodiscard]] std::string ram_path() const;                         // a first boot's RAM file
  [[nodiscard]] std::string overlay_path() const;                     // its qcow2 overlay
  [[nodiscard]] std::string run_path(const std::string& name) const;  // sockets: "agent.sock"

  // From now on the file is a layer's, not ours to remove.
  void give_away_ram() { ram_given_ = true; }
  void give_away_overlay() { overlay_given_ = true; }

  Result<void> stop();   // QMP stop: the guest stands still, disks are flushed
  Result<void> go_on();  // QMP cont
  Result<std::vector<std::byte>> save_state();
  // Once, into a QEMU that start() made to wait for it.
  Result<void> load_state(const std::vector<std::byte>& state);

  // Connects the guest channel; link() is null before. Not thread-safe against link().
  Result<void> connect_link(GuestLink::Callbacks callbacks, GuestLink::Start start);
  [[nodiscard]] GuestLink* link() const { return link_.get(); }

  void kill();  // SIGKILL, at once
  // False as soon as it has ended, which may be before the keeper has reported it. One that is held
  // (Keeper::hold) counts as alive until it is let go.
  [[nodiscard]] bool alive() const { return !ends_within(0); }
  // Its sockets close a moment before it has ended: who has seen that waits here.
  [[nodiscard]] bool ends_within(int timeout_ms) const;
  void note_exit() { ended_ = true; }  // the keeper has reported its end
  [[nodiscard]] uint64_t private_bytes()
      const;  // memory that is only this process's (smaps_rollup)

 private:
  QemuProcess(Context& context, std::string key, const MachineConfig& config, const Ground& ground);
  Result<void> make_files(const Launch& launch);
  Result<void> spawn(const Launch& launch);
  void remove_files();

  Context& context_;
  const std::string key_;
  const MachineConfig config_;
  Ground ground_;
  unsigned slot_ = 0;
  bool has_slot_ = false;
  pid_t pid_ = 0;
  Fd pidfd_;
  std::unique_ptr<Qmp> qmp_;
  Fd incoming_;  // takes the state that a waiting QEMU is to load
  std::unique_ptr<GuestLink> link_;
  std::atomic<bool> ended_ = false;
  std::atomic<bool> ram_given_ = false;
  std::atomic<bool> overlay_given_ = false;
};

}  // namespace snow
