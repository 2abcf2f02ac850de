#include "vm/event_log.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "vm/time_text.h"

namespace snow {

EventLog::EventLog() : first_(static_cast<uint64_t>(wall_clock_ns() / 1000)), next_(first_) {}

uint64_t EventLog::add(std::string_view type, std::string_view vm) {
  return add(type, vm, nlohmann::json::object());
}

uint64_t EventLog::add(std::string_view type, std::string_view vm, const nlohmann::json& extra) {
  nlohmann::json event = extra.is_object() ? extra : nlohmann::json::object();
  event["type"] = type;
  event["vm"] = vm;
  const std::lock_guard lock(mutex_);
  event["time"] = rfc3339(wall_clock_ns());
  event["seq"] = next_;
  events_.push_back(event.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  if (events_.size() > kEvents) events_.pop_front();
  changed_.notify_all();
  return next_++;
}

uint64_t EventLog::last() {
  const std::lock_guard lock(mutex_);
  return next_ - 1;
}

nlohmann::json EventLog::wait(uint64_t after, int timeout_ms) {
  std::unique_lock lock(mutex_);
  after = after == 0 ? next_ - 1 : std::min(after, next_ - 1);
  const auto ready = [&] { return closed_ || next_ - 1 > after; };
  if (timeout_ms < 0) {
    changed_.wait(lock, ready);
  } else {
    changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), ready);
  }
  const uint64_t oldest = next_ - events_.size();
  const uint64_t from = after + 1;
  nlohmann::json events = nlohmann::json::array();
  if (from < oldest && oldest > first_) {
    const uint64_t lost = oldest - std::max(from, first_);
    events.push_back({{"type", "lost"},
                      {"vm", ""},
                      {"seq", oldest - 1},
                      {"time", rfc3339(wall_clock_ns())},
                      {"count", lost}});
  }
  for (uint64_t number = std::max(from, oldest); number < next_; ++number) {
    events.push_back(nlohmann::json::parse(events_[number - oldest]));
  }
  return events;
}

void EventLog::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

}  // namespace snow
