// Threads for notifications that wait in the kernel for reads under way (dropping and storing
// pages, dropping names).
//
// Such a wait ends for nothing but the answer to the read, not even for SIGKILL. A daemon killed in
// it would keep its descriptors, and whoever watches them (the keeper, clients) would take it for
// alive; yet only the daemon after it can answer the read. So each of these threads has a table of
// descriptors of its own (unshare(2)) with nothing but /dev/fuse in it: everything else of a killed
// daemon is closed at once. Its process id goes away with the last such wait.
//
// Thread-safe.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "lazyfs/device.h"

namespace snow {

class Notifier {
 public:
  using Call = std::function<int(Device&)>;

  // Duplicates nothing: `device` must stay open while this object is there.
  explicit Notifier(Device& device) : state_(std::make_shared<State>(device)) {}
  // Ends the threads. One that still waits in the kernel ends later, by itself.
  ~Notifier();
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;

  // Runs the call on one of the threads and waits; its result.
  int run(const Call& call);
  // Runs it some time.
  void post(Call call);

 private:
  struct State {
    explicit State(Device& device_in) : device(device_in) {}
    Device& device;  // not by a thread that was busy when the notifier went
    std::mutex mutex;
    std::condition_variable work;
    std::condition_variable ended;
    std::deque<Call> calls;
    size_t idle = 0;  // threads that start or wait for work
    bool stopping = false;
  };
  static void serve(const std::shared_ptr<State>& state);

  const std::shared_ptr<State> state_;
};

}  // namespace snow
