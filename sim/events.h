// What happens, and when: a queue of events in the order of time, and of making at equal times.
#pragma once

#include <array>
#include <cstdint>
#include <queue>
#include <vector>

#include "sim/network.h"

namespace snow::sim {

// What one host sends another. Bytes are not carried: only which pages are wrong.
struct Message {
  enum class Type : uint8_t {
    fetch,
    pages,
    redirect,
    coming,
    retry,
    absent,
    refused,    // nobody listens there: the process is gone
    done,       // of an answer: it is over
    wrong,      // a report: `about` gave wrong bytes
    slow,       // a report
    reception,  // a listener's report: got, missed
    multicast,
    leave
  } type = Type::fetch;
  HostNumber from = 0, to = 0;
  uint32_t from_life = 0, to_life = 0;  // a connection ends with either's life
  uint64_t ask = 0;
  Run run;
  uint64_t pages = 0;    // which of the run
  uint64_t corrupt = 0;  // which of them are not what they should be
  Lane lane = Lane::demand;
  bool no_redirect = false, again = false, no_wait = false, last = false;
  uint8_t host_count = 0;
  std::array<HostNumber, 3> hosts{};
  HostNumber about = 0;
  uint32_t got = 0, missed = 0;
  Nanos wait = 0;
  Nanos deadline = 0;  // of the ask: then the connection is dropped
};

struct Event {
  enum class Kind : uint8_t {
    deliver,         // message
    handle,          // message, at the origin, when a CPU had time for it
    open,            // host
    tick,            // host
    reader,          // host, number; UINT64_MAX: all begin
    watch_deadline,  // host, id
    reception,       // host: report what multicast brought
    multicast_send,  // the origin's sender
    multicast_tick,
    fault,  // number
    check
  } kind = Kind::check;
  HostNumber host = 0;
  uint32_t life = 0;
  uint64_t id = 0;
  uint32_t message = 0;
};

class EventQueue {
 public:
  void at(Nanos time, const Event& event) { heap_.push({time, ++sequence_, event}); }
  void at(Nanos time, Event::Kind kind, const Message& message) {
    uint32_t index;
    if (free_.empty()) {
      index = static_cast<uint32_t>(messages_.size());
      messages_.push_back(message);
    } else {
      index = free_.back();
      free_.pop_back();
      messages_[index] = message;
    }
    Event event;
    event.kind = kind;
    event.message = index;
    at(time, event);
  }
  Message take(uint32_t index) {
    free_.push_back(index);
    return messages_[index];
  }
  [[nodiscard]] bool empty() const { return heap_.empty(); }
  [[nodiscard]] Nanos next() const { return heap_.top().time; }
  Event pop() {
    const Event event = heap_.top().event;
    heap_.pop();
    return event;
  }
  [[nodiscard]] uint64_t made() const { return sequence_; }

 private:
  struct Entry {
    Nanos time;
    uint64_t sequence;
    Event event;
    bool operator<(const Entry& other) const {
      return time != other.time ? time > other.time : sequence > other.sequence;
    }
  };
  std::priority_queue<Entry> heap_;
  std::vector<Message> messages_;
  std::vector<uint32_t> free_;
  uint64_t sequence_ = 0;
};

}  // namespace snow::sim
