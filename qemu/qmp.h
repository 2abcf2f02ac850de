// QEMU's control socket (QMP): commands with answers, events. Thread-safe; commands are answered in
// the order in which they were sent. One thread per connection reads.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"

namespace snow {

class Qmp {
 public:
  // Waits for the socket to appear and greet, at most `timeout_ms`; `alive` (may be empty) is asked
  // meanwhile so that a QEMU that died at once is reported at once (false: Code::host_failed). QEMU
  // serves one connection at a time; after it is closed another may be made.
  static Result<std::unique_ptr<Qmp>> connect(const std::string& path, int timeout_ms,
                                              const std::function<bool()>& alive);
  // Must not run on the reading thread, that is, in a callback.
  virtual ~Qmp() = default;

  // The answer's "return". QEMU's error becomes Code::host_failed with its text; a closed
  // connection Code::guest_failed; no answer in time Code::timed_out (the command may still be
  // carried out).
  virtual Result<nlohmann::json> execute(const std::string& command,
                                         const nlohmann::json& arguments = {},
                                         int timeout_ms = 10'000) = 0;

  // Called on the reading thread, with the event's whole object ("event", "data"). It must not call
  // execute(). Set once; events that came before are delivered at once (the last 256 of them).
  virtual void on_event(std::function<void(const nlohmann::json&)> callback) = 0;
  // Called once when QEMU closes the connection (or says something that is not QMP), not when this
  // object is destroyed; at once if that has happened already.
  virtual void on_close(std::function<void()> callback) = 0;

  // Collects events named `event` from its making on, beside on_event(). Make it before the command
  // that brings the event about. Must not outlive the Qmp. For one thread.
  class Watch {
   public:
    virtual ~Watch() = default;
    // The next event's whole object. Code::timed_out, or Code::guest_failed when the connection was
    // closed and no event is left.
    virtual Result<nlohmann::json> next(int timeout_ms) = 0;
  };
  virtual std::unique_ptr<Watch> watch(const std::string& event) = 0;
};

}  // namespace snow
