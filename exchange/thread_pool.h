// Threads for jobs that wait for other hosts. A thread is made when none is free, up to a limit;
// beyond it jobs wait in order. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace snow::exchange {

class ThreadPool {
 public:
  // `nice`: added to the threads' niceness, so that bulk yields the processor to demands.
  ThreadPool(size_t most_threads, int nice) : most_(most_threads), nice_(nice) {}
  ~ThreadPool() { stop(); }

  // After stop() jobs are dropped.
  void submit(std::function<void()> job);
  // Jobs that have not begun are dropped; waits for the others.
  void stop();

 private:
  void run();

  const size_t most_;
  const int nice_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  std::vector<std::thread> threads_;
  size_t idle_ = 0;
  bool stopping_ = false;
};

// Adds to the calling thread's niceness.
void be_nice(int by);

}  // namespace snow::exchange
