#include "exchange/thread_pool.h"

#include <sys/resource.h>
#include <unistd.h>

#include <utility>

namespace snow::exchange {

void be_nice(int by) {
  // Linux: for this thread only. One that cannot be nicer works all the same.
  if (by != 0) (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), by);
}

void ThreadPool::submit(std::function<void()> job) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  jobs_.push_back(std::move(job));
  if (idle_ >= jobs_.size() || threads_.size() >= most_) {
    wake_.notify_one();
    return;
  }
  threads_.emplace_back([this] { run(); });
}

void ThreadPool::run() {
  be_nice(nice_);
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    --idle_;
    if (stopping_) return;
    {
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
    }
    lock.lock();
  }
}

void ThreadPool::stop() {
  std::vector<std::thread> threads;
  std::deque<std::function<void()>> dropped;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    dropped.swap(jobs_);
    threads.swap(threads_);
  }
  wake_.notify_all();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace snow::exchange
