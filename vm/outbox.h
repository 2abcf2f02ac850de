// What this host owes other hosts: messages that must arrive however long it takes (how a clone
// ended, an image that is not needed any more). On record until the other host has confirmed them;
// delivered in order for each host, tried again with growing pauses while it does not answer.
//
// Thread-safe. One thread for each host that is owed something.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "vm/store.h"

namespace snow {

class Outbox {
 public:
  struct Item {
    std::string host;
    std::string method;
    nlohmann::json content;
    std::string file;  // sent along, and removed when it has arrived; empty: none
  };
  // Called on the outbox's threads; may block for seconds. A refusal that no repetition can change
  // (usage, invalid, denied, not_found) ends the message; every other error means later again.
  using Send = std::function<Result<void>(const Item& item)>;

  // Sends at once what an earlier daemon still owed.
  static Result<std::unique_ptr<Outbox>> open(Store& store, Send send);
  ~Outbox();  // stop()
  Outbox(const Outbox&) = delete;
  Outbox& operator=(const Outbox&) = delete;

  // Finishes the messages that are being sent and sends no more; what is added later is the next
  // daemon's to send.
  void stop();

  // On record when it returns.
  Result<void> add(Item item);
  // The host has left the cluster: it is owed nothing any more.
  void forget(const std::string& host);
  // A host that was away is back: no need to wait for the next try.
  void hurry(const std::string& host);
  [[nodiscard]] size_t waiting(const std::string& host) const;
  [[nodiscard]] std::vector<std::string> files() const;  // of all that is owed

 private:
  struct Entry {
    std::string id;
    Item item;
  };
  struct Lane {
    std::deque<Entry> queue;
    std::condition_variable wake;
    bool hurry = false;
    std::thread thread;
  };

  Outbox(Store& store, Send send) : store_(store), send_(std::move(send)) {}
  void queue(Entry entry);  // mutex_ is held
  void loop(Lane& lane);
  void drop(const Entry& entry);

  Store& store_;
  const Send send_;
  mutable std::mutex mutex_;
  bool stopping_ = false;
  uint64_t next_ = 0;
  std::map<std::string, std::unique_ptr<Lane>> lanes_;  // by host
};

}  // namespace snow
