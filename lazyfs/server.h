// The threads that answer the kernel. Each reads /dev/fuse into its slot of the request table,
// answers, clears the slot. When the last idle one takes a request, another is started, up to the
// number of slots: threads that wait in Content::read stop nobody else.
//
// stop() ends the threads with a signal that interrupts read(2). It does not wait for a thread
// inside Content::read, which may block as long as its source does: such a thread is abandoned. Its
// request stays noted in its slot for the server after this one, and when the content returns, the
// thread ends without touching anything of the server.
//
// Thread-safe.
#pragma once

#include <linux/fuse.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "lazyfs/device.h"
#include "lazyfs/file_table.h"
#include "lazyfs/notifier.h"
#include "lazyfs/request_table.h"

namespace snow {

class Server {
 public:
  Server(Device& device, Notifier& notifier, RequestTable& table, FileTable& files)
      : device_(device), notifier_(notifier), table_(table), files_(files) {}
  ~Server() { stop(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Answers what is noted in the table, then what the kernel sends. Once.
  Result<void> start(size_t threads);
  void stop();

  // The kernel forgot `lookups` of the file (0: it was just removed): drops it if nobody has it.
  void forget(uint64_t number, uint64_t lookups);

 private:
  class Worker;
  // A request in a slot: the header is a copy, the rest lies in the slot.
  struct Request;

  bool add_worker();
  void run(Worker& worker);
  bool handle(Worker& worker);
  bool read_file(Worker& worker, const Request& request);
  void dispatch(const Request& request);
  void look_up(const Request& request);
  void get_attributes(const Request& request);
  void read_folder(Worker& worker, const Request& request);
  void allocate(const Request& request);
  void refuse_write(const Request& request);
  void log_failure(const std::string& text);

  Device& device_;
  Notifier& notifier_;
  RequestTable& table_;
  FileTable& files_;
  std::atomic<bool> stopping_ = false;
  std::atomic<int> idle_ = 0;
  std::atomic<int64_t> last_failure_ns_ = 0;
  std::atomic<uint64_t> silent_failures_ = 0;
  std::mutex mutex_;  // guards workers_
  std::vector<std::shared_ptr<Worker>> workers_;
};

}  // namespace snow
