// One round of poll(2): who wants what, and what happens then. Callbacks may remove anything; they
// look their object up by number, so a stale one does nothing.
#pragma once

#include <poll.h>

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

namespace snow::guest {

class Poller {
 public:
  void add(int fd, short events, std::function<void(short)> then) {
    fds_.push_back({fd, events, 0});
    then_.push_back(std::move(then));
  }
  // The round lasts at most so long.
  void limit(int timeout_ms) {
    timeout_ms_ = timeout_ms_ < 0 ? timeout_ms : std::min(timeout_ms_, timeout_ms);
  }
  void run() {
    if (poll(fds_.data(), fds_.size(), timeout_ms_) <= 0) return;
    for (size_t i = 0; i < fds_.size(); ++i) {
      if (fds_[i].revents != 0) then_[i](fds_[i].revents);
    }
  }

 private:
  std::vector<pollfd> fds_;
  std::vector<std::function<void(short)>> then_;
  int timeout_ms_ = -1;
};

}  // namespace snow::guest
