// The keeper's service: one daemon at a time on RUN_DIR/keeper.sock, and what is kept for it.
// Single-threaded: everything happens in run()'s poll loop, and nothing in it waits for a peer.
#pragma once

#include <sys/types.h>

#include <deque>
#include <map>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "keeper/children.h"
#include "keeper/protocol.h"

namespace snow {

class KeeperServer {
 public:
  // `signals` is a signalfd that has SIGCHLD and SIGTERM. Code::exists if another keeper serves
  // run_dir.
  static Result<std::unique_ptr<KeeperServer>> open(const std::string& run_dir, Fd signals);

  // Serves until shut_down or SIGTERM. Then every process is killed and reaped, and the socket
  // removed.
  void run();

 private:
  struct Outgoing {
    std::string text;
    Fd fd;
  };

  KeeperServer(const std::string& run_dir, Fd signals, Fd listener);
  void wait_and_handle();
  void handle_signals();
  void accept_daemon();
  void handle_daemon();
  void drop_daemon(const std::string& why);
  void handle_request(const Request& request, Fd fd);
  void greet(const Request& request);
  void answer_fuse_fd(uint64_t number);
  void answer_table_fd(const Request& request);
  void answer_list(const Request& request);
  void answer(uint64_t number, const Result<void>& result);
  void queue(const Reply& reply, Fd fd = Fd());
  void flush();

  const std::string socket_path_;
  Fd signals_;
  Fd listener_;
  Fd daemon_;
  bool greeted_ = false;
  bool ending_ = false;
  int64_t end_deadline_ns_ = 0;
  uint64_t next_start_ = 1;
  std::map<uint64_t, uint64_t> starts_;  // begun for this daemon: ours -> the request's number
  std::deque<Outgoing> outgoing_;
  Fd fuse_;
  Fd table_;
  Children children_;
};

}  // namespace snow
