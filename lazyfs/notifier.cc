#include "lazyfs/notifier.h"

#include <linux/close_range.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <future>
#include <system_error>
#include <thread>
#include <utility>

namespace snow {
namespace {

// From now on this thread has `fd` (by its number) and no other descriptor. False: it goes on
// sharing all of them. System calls directly: what watches descriptors in the process (sanitizers)
// knows one table only.
bool keep_only(int fd) {
  const auto number = static_cast<unsigned>(fd);
  if (syscall(SYS_close_range, number + 1, UINT_MAX, CLOSE_RANGE_UNSHARE) != 0) return false;
  if (number > 0) syscall(SYS_close_range, 0U, number - 1, 0U);
  return true;
}

}  // namespace

Notifier::~Notifier() {
  std::unique_lock lock(state_->mutex);
  state_->stopping = true;
  state_->work.notify_all();
  state_->ended.wait(lock, [this] { return state_->idle == 0; });
}

int Notifier::run(const Call& call) {
  std::promise<int> result;
  post([&](Device& device) {
    result.set_value(call(device));
    return 0;
  });
  return result.get_future().get();
}

void Notifier::post(Call call) {
  std::unique_lock lock(state_->mutex);
  state_->calls.push_back(std::move(call));
  if (state_->idle >= state_->calls.size()) {
    state_->work.notify_one();
    return;
  }
  try {
    std::thread(serve, state_).detach();
    ++state_->idle;
  } catch (const std::system_error&) {
    // No thread to be had: the caller waits itself.
    Call mine = std::move(state_->calls.back());
    state_->calls.pop_back();
    lock.unlock();
    mine(state_->device);
  }
}

void Notifier::serve(const std::shared_ptr<State>& state) {
  const int fd = state->device.fd();
  const bool own_table = keep_only(fd);
  Device device{Fd(fd)};
  std::unique_lock lock(state->mutex);
  for (;;) {
    state->work.wait(lock, [&] { return state->stopping || !state->calls.empty(); });
    if (state->calls.empty()) break;
    const Call call = std::move(state->calls.front());
    state->calls.pop_front();
    --state->idle;
    lock.unlock();
    call(device);
    lock.lock();
    ++state->idle;
  }
  // The descriptor goes before the destructor of the notifier returns.
  if (device.release() >= 0 && own_table) syscall(SYS_close, fd);
  --state->idle;
  state->ended.notify_all();
}

}  // namespace snow
