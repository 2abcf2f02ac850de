// A ticket: the right of one VM to fork, with everything that the fork needs made ready, and later
// the list of what became of its clones. Guarded by the host's mutex, except the reservation, which
// belongs to whoever has taken it out of the ticket.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "vm/admission.h"
#include "vm/qemu_process.h"

namespace snow {

// Room and waiting QEMUs for clones on another host. Given back if it is destroyed unused.
struct RemotePart {
  RemotePart() = default;
  RemotePart(const RemotePart&) = delete;
  RemotePart& operator=(const RemotePart&) = delete;
  ~RemotePart() {
    if (give_back) give_back();
  }

  std::string host;              // its id
  std::string id;                // of the reservation there
  std::vector<std::string> vms;  // ids that its clones will have
  std::function<void()> give_back;
};

// QEMUs that wait, with the files of the next image mapped. shells[0] is the parent's.
struct Reservation {
  std::shared_ptr<LazyFile> memory;  // unbound
  std::shared_ptr<LazyFile> disk;    // unbound; null: the VM has none
  std::vector<std::shared_ptr<QemuProcess>> shells;
  Admission::Token room;  // for the clones here; the parent has its own
  std::vector<std::unique_ptr<RemotePart>> remote;

  // Clones in all.
  [[nodiscard]] unsigned granted() const {
    size_t count = room.count();
    for (const auto& part : remote) count += part->vms.size();
    return static_cast<unsigned>(count);
  }
};

struct CloneEnd {
  unsigned index = 0;
  std::string vm;               // id
  std::string host = {};        // where it runs; empty: here
  std::string how = "running";  // running | exited | killed | crashed | lost
  int status = 0;
  uint64_t result_bytes = 0;  // of the file result_dir/TICKET.INDEX
  bool removed = false;       // of one on another host: it was forgotten there
};

struct Ticket {
  std::string id;
  std::string owner;  // VM id
  bool hierarchical = false;
  bool inside = false;  // a program in the guest asked for it
  unsigned requested = 0;
  unsigned granted = 0;
  std::string created;  // RFC 3339
  std::string expires;
  int64_t deadline_ns = 0;  // monotonic: given back by then if unused
  bool forked = false;
  std::unique_ptr<Reservation> reservation;
  std::vector<CloneEnd> clones;

  // Joins that wait: called once, without the host's mutex, when all clones have ended or at the
  // deadline.
  struct Waiter {
    int64_t deadline_ns = 0;  // monotonic; INT64_MAX: never
    std::function<void()> wake;
  };
  std::vector<Waiter> waiters;

  [[nodiscard]] bool all_ended() const {
    for (const CloneEnd& clone : clones) {
      if (clone.how == "running") return false;
    }
    return true;
  }
  [[nodiscard]] uint64_t result_bytes() const {
    uint64_t bytes = 0;
    for (const CloneEnd& clone : clones) bytes += clone.result_bytes;
    return bytes;
  }
};

nlohmann::json ticket_to_json(const Ticket& ticket);  // for the API
nlohmann::json ticket_to_record(const Ticket& ticket);
std::shared_ptr<Ticket> ticket_from_record(const nlohmann::json& record);

}  // namespace snow
