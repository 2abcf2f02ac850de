// A few threads for work that must not run on the thread that asked for it (callbacks of the
// keeper, of QEMU and of guests). Thread-safe. The destructor finishes what was posted.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace snow {

class Workers {
 public:
  explicit Workers(size_t threads);
  ~Workers();
  void post(std::function<void()> work);
  // Finishes what was posted and ends the threads; later work is dropped.
  void stop();

 private:
  void loop();
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

// Runs work(0..count-1), at most `parallel` at a time, and returns when all are done.
void for_each_parallel(size_t count, size_t parallel, const std::function<void(size_t)>& work);

}  // namespace snow
