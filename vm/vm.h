// One VM as the daemon knows it. `operation` is held through each operation on it (fork, pause,
// kill, remove...), so that they come one after the other; everything else is guarded by the host's
// mutex.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "guestlink/link.h"
#include "qemu/machine.h"
#include "vm/admission.h"
#include "vm/frozen.h"
#include "vm/qemu_process.h"

namespace snow {

enum class VmState { starting, running, paused, stopping, crashed, exited };
const char* state_name(VmState state);

struct VmExit {
  std::string how;  // exited | shutdown | killed | crashed | lost
  int status = 0;
  std::string message;
};

struct Vm {
  std::mutex operation;

  std::string id;
  std::string name;
  VmState state = VmState::starting;
  MachineConfig config;
  std::string image;
  std::string snapshot;  // started of it; empty: not
  std::string parent;    // id; empty: booted
  std::string ticket;    // of the fork that made it
  std::string home;      // the host that has that ticket; empty: this one
  unsigned index = 0;
  unsigned count = 0;  // clones of that fork
  uint32_t call = 0;   // of the parent's guest, that asked for it; 0: the host did
  unsigned generation = 0;
  unsigned children = 0;  // made so far; numbers their names
  std::string uuid;
  std::string mac;
  std::string created;  // RFC 3339, UTC
  std::string ended;
  VmExit exit;            // when ended
  bool agent = false;     // it has answered
  bool had_agent = true;  // the frozen guest had one: it is told who it is
  std::vector<std::string> undone;
  Steps steps;  // of its last boot or fork
  std::map<std::string, std::string> environment;
  std::map<std::string, std::string> parameters;

  std::shared_ptr<QemuProcess> process;  // null once ended
  std::shared_ptr<Frozen> over;          // what it was thawed from; null: a first boot
  Admission::Token room;

  // Calls of its guest, taken one at a time.
  std::deque<std::shared_ptr<GuestCall>> calls;
  bool in_call = false;

  bool restored = false;  // by the fork under way; guarded by `operation`

  [[nodiscard]] bool ended_already() const {
    return state == VmState::crashed || state == VmState::exited;
  }
};

nlohmann::json vm_to_json(const Vm& vm);    // for the API
nlohmann::json vm_to_record(const Vm& vm);  // for the daemon after this one
Result<std::shared_ptr<Vm>> vm_from_record(const nlohmann::json& record);  // without process, over

nlohmann::json steps_to_json(const Steps& steps);
std::string utc_now();  // RFC 3339

}  // namespace snow
