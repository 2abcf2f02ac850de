// QEMU's control socket (QMP): commands with answers, events. Thread-safe; commands are answered in
// the order in which they were sent.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"

namespace snow {

class Qmp {
 public:
  // Waits for the socket to appear and greet, at most `timeout_ms`; `alive` is asked meanwhile so
  // that a QEMU that died at once is reported at once (false: Code::host_failed).
  static Result<std::unique_ptr<Qmp>> connect(const std::string& path, int timeout_ms,
                                              const std::function<bool()>& alive);
  virtual ~Qmp() = default;

  // The answer's "return". QEMU's error becomes Code::host_failed with its text; a closed
  // connection Code::guest_failed; no answer in time Code::timed_out.
  virtual Result<nlohmann::json> execute(const std::string& command,
                                         const nlohmann::json& arguments = {},
                                         int timeout_ms = 10'000) = 0;

  // Called on the reading thread, with the event's whole object ("event", "data"). It must not call
  // execute(). Set once; events that came before are delivered at once.
  virtual void on_event(std::function<void(const nlohmann::json&)> callback) = 0;
  virtual void on_close(std::function<void()> callback) = 0;
};

}  // namespace snow
