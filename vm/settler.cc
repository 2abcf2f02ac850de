#include "vm/settler.h"

#include <chrono>

#include "base/file.h"
#include "base/log.h"

namespace snow {
namespace {

constexpr int64_t kForkFirstNs = 1'000'000'000;
constexpr auto kRetry = std::chrono::seconds(2);

}  // namespace

Settler::Settler(std::function<bool(const Frozen&, const Layer&)> is_private,
                 std::function<void()> settled)
    : is_private_(std::move(is_private)), settled_(std::move(settled)) {
  thread_ = std::thread([this] { loop(); });
}

Settler::~Settler() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Settler::add(std::shared_ptr<Frozen> frozen) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(frozen));
  }
  wake_.notify_all();
}

bool Settler::step_aside(int64_t& patience_ns) {
  while (forks_ > 0 && patience_ns > 0 && !stopping_) {
    const int64_t since = monotonic_ns();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    patience_ns -= monotonic_ns() - since;
  }
  return !stopping_;
}

void Settler::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    auto frozen = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    int64_t patience_ns = kForkFirstNs;
    Result<void> done;
    // Nobody but us wants it any more: it goes as it is.
    if (frozen.use_count() > 1 && step_aside(patience_ns)) {
      done = frozen->settle([&] { return step_aside(patience_ns); },
                            [&](const Layer& layer) { return is_private_(*frozen, layer); });
    }
    if (done) {
      frozen.reset();
      settled_();
    }
    lock.lock();
    if (!done && !stopping_) {
      log_error("frozen machine {}: its memory cannot be copied yet, the stopped QEMU keeps it: {}",
                frozen->id(), done.error().message);
      queue_.push_front(std::move(frozen));  // those after it stand on it
      wake_.wait_for(lock, kRetry, [&] { return stopping_.load(); });
    }
  }
}

}  // namespace snow
