// The consoles of all VMs: what each guest's serial port prints is kept (the last MiB, in files, so
// that it outlives the daemon) and handed to live sessions.
//
// One thread reads all connections. It never waits for a session or a guest: a session that reads
// too slowly loses its oldest bytes and is told so; input that the guest does not take is refused
// when kInputBytes of it wait. Memory per VM and per session is bounded whatever the guest prints.
// Thread-safe. Sessions may outlive the hub.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/fd.h"
#include "base/result.h"
#include "vm/host.h"

namespace snow {

class ConsoleHub {
 public:
  static constexpr size_t kLogBytes = size_t{1} << 20;        // kept per VM, in two files
  static constexpr size_t kSessionBytes = size_t{256} << 10;  // waiting for one session
  static constexpr size_t kInputBytes = size_t{64} << 10;     // waiting for one guest
  static constexpr size_t kSessions = 16;                     // per VM

  static Result<std::unique_ptr<ConsoleHub>> start();
  ~ConsoleHub();  // sessions end; logs stay

  // Connects to QEMU's console socket (it listens) and reads from now on. The log is `log_path` and
  // `log_path`.1, appended to if they are there. A VM that is attached already gets the new
  // connection instead of the old one (its QEMU was replaced by a thaw): sessions and log go on.
  // Code::unavailable: nobody listens.
  Result<void> attach(const std::string& vm, const std::string& socket_path,
                      const std::string& log_path);

  // The VM ended: what QEMU still had sent is read, sessions see the end; the log can be read on.
  void end(const std::string& vm);
  // Forgets a VM; its log files are the caller's to remove. Unknown: fine.
  void forget(const std::string& vm);

  // For VMs that were never attached here (ended before this daemon), use read_log.
  Result<std::string> log(const std::string& vm);
  static std::string read_log(const std::string& log_path);

  // Code::wrong_state: the VM ended; Code::no_room: kSessions are open.
  Result<std::unique_ptr<Host::ConsoleSession>> open(const std::string& vm);

  struct Console;  // of one VM; shared with its sessions

 private:
  ConsoleHub() = default;
  void loop();
  std::shared_ptr<Console> find(const std::string& vm);

  Fd epoll_;
  Fd wake_;  // eventfd
  std::mutex mutex_;
  bool stopping_ = false;
  uint64_t next_key_ = 1;  // epoll's name for a console
  std::map<uint64_t, std::shared_ptr<Console>> by_key_;
  std::map<std::string, uint64_t> keys_;
  std::thread thread_;
};

}  // namespace snow
