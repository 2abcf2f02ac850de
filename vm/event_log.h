// The last events of this host, for `snow events`: a ring of kEvents, in memory. Sequence numbers
// rise by one per event and start at the clock's microseconds, so that they also rise from one
// daemon to the next. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace snow {

class EventLog {
 public:
  static constexpr size_t kEvents = 4096;

  EventLog();

  // {"seq", "time" (RFC 3339, UTC), "type", "vm"} and the members of `extra` (an object). Returns
  // its seq.
  uint64_t add(std::string_view type, std::string_view vm);
  uint64_t add(std::string_view type, std::string_view vm, const nlohmann::json& extra);

  // The newest event's number; of an earlier daemon's time if there was none yet.
  uint64_t last();

  // The events after number `after` (0, or a number not reached yet: only those that come from now
  // on), oldest first, as an array; waits for the first one at most `timeout_ms` (below 0: for
  // ever). Where the ring has lost events of this daemon that were asked for, the array begins with
  // {"type": "lost", "count"}.
  nlohmann::json wait(uint64_t after, int timeout_ms);

  // The daemon ends: every wait() returns at once, now and later.
  void close();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t first_ = 0;  // of this daemon
  uint64_t next_ = 0;
  bool closed_ = false;
  std::deque<std::string> events_;  // as JSON text; the last one has number next_ - 1
};

}  // namespace snow
