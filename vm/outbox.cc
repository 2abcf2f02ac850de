#include "vm/outbox.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"

namespace snow {
namespace {

constexpr auto kFirstPause = std::chrono::milliseconds(100);
constexpr auto kLongestPause = std::chrono::milliseconds(5'000);
constexpr const char* kKind = "owed";

bool is_final(Code code) {
  return code == Code::usage || code == Code::invalid || code == Code::denied ||
         code == Code::not_found;
}

}  // namespace

Result<std::unique_ptr<Outbox>> Outbox::open(Store& store, Send send) {
  std::unique_ptr<Outbox> outbox(new Outbox(store, std::move(send)));
  SNOW_ASSIGN(const auto records, store.list(kKind));  // by id: in the order of their making
  const std::lock_guard lock(outbox->mutex_);
  for (const auto& [id, json] : records) {
    Entry entry{id,
                {json.value("host", ""), json.value("method", ""),
                 json.value("content", nlohmann::json::object()), json.value("file", "")}};
    outbox->next_ = std::max<uint64_t>(outbox->next_, std::strtoull(id.c_str(), nullptr, 10) + 1);
    outbox->queue(std::move(entry));
  }
  return outbox;
}

Outbox::~Outbox() { stop(); }

void Outbox::stop() {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
    for (const auto& [host, lane] : lanes_) lane->wake.notify_all();
  }
  for (const auto& [host, lane] : lanes_) lane->thread.join();
}

Result<void> Outbox::add(Item item) {
  const std::lock_guard lock(mutex_);
  Entry entry{fmt::format("{:020}", next_++), std::move(item)};
  SNOW_TRY(store_.put(kKind, entry.id,
                      {{"host", entry.item.host},
                       {"method", entry.item.method},
                       {"content", entry.item.content},
                       {"file", entry.item.file}}));
  queue(std::move(entry));
  return {};
}

void Outbox::queue(Entry entry) {
  if (stopping_) return;
  auto& lane = lanes_[entry.item.host];
  if (!lane) {
    lane = std::make_unique<Lane>();
    lane->thread = std::thread([this, at = lane.get()] { loop(*at); });
  }
  lane->queue.push_back(std::move(entry));
  lane->wake.notify_all();
}

void Outbox::drop(const Entry& entry) {
  if (auto removed = store_.remove(kKind, entry.id); !removed) {
    log_error("message to host {}: {}", entry.item.host, removed.error().message);
  }
  if (!entry.item.file.empty()) ::unlink(entry.item.file.c_str());
}

void Outbox::forget(const std::string& host) {
  std::deque<Entry> entries;
  {
    const std::lock_guard lock(mutex_);
    const auto it = lanes_.find(host);
    if (it == lanes_.end()) return;
    entries.swap(it->second->queue);
    it->second->hurry = true;
    it->second->wake.notify_all();
  }
  for (const Entry& entry : entries) drop(entry);
}

void Outbox::hurry(const std::string& host) {
  const std::lock_guard lock(mutex_);
  const auto it = lanes_.find(host);
  if (it == lanes_.end()) return;
  it->second->hurry = true;
  it->second->wake.notify_all();
}

size_t Outbox::waiting(const std::string& host) const {
  const std::lock_guard lock(mutex_);
  const auto it = lanes_.find(host);
  return it == lanes_.end() ? 0 : it->second->queue.size();
}

std::vector<std::string> Outbox::files() const {
  std::vector<std::string> files;
  const std::lock_guard lock(mutex_);
  for (const auto& [host, lane] : lanes_) {
    for (const Entry& entry : lane->queue) {
      if (!entry.item.file.empty()) files.push_back(entry.item.file);
    }
  }
  return files;
}

void Outbox::loop(Lane& lane) {
  auto pause = std::chrono::milliseconds(kFirstPause);
  std::unique_lock lock(mutex_);
  for (;;) {
    lane.wake.wait(lock, [&] { return stopping_ || !lane.queue.empty(); });
    if (stopping_) return;
    const Entry entry = lane.queue.front();
    lane.hurry = false;
    lock.unlock();
    const auto sent = send_(entry.item);
    const bool over = sent || is_final(sent.error().code);
    if (!sent && over) {
      log_warn("host {} refuses '{}': {}", entry.item.host, entry.item.method,
               sent.error().message);
    }
    if (over) drop(entry);
    lock.lock();
    // forget() may have emptied the queue meanwhile.
    const bool still_first = !lane.queue.empty() && lane.queue.front().id == entry.id;
    if (over) {
      if (still_first) lane.queue.pop_front();
      pause = kFirstPause;
      continue;
    }
    lane.wake.wait_for(lock, pause, [&] { return stopping_ || lane.hurry; });
    pause = std::min(2 * pause, kLongestPause);
  }
}

}  // namespace snow
