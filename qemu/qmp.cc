#include "qemu/qmp.h"

#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"
#include "qemu/jail_files.h"
#include "qemu/qmp_parser.h"

namespace snow {

namespace {

using nlohmann::json;
using std::chrono::milliseconds;

constexpr size_t kMaxKeptEvents = 256;   // before on_event() is called, and in each watch
constexpr int kConnectPollMs = 2;        // between attempts to connect
constexpr int kAlivePollMs = 20;         // between questions whether QEMU lives
constexpr size_t kMaxErrorBytes = 1024;  // of QEMU's text in our messages

std::string text_of(const json& object, const char* field) {
  const auto found = object.find(field);
  if (found == object.end() || !found->is_string()) return {};
  return found->get<std::string>();
}

class QmpConnection : public Qmp {
 public:
  QmpConnection(Fd fd, std::string path) : path_(std::move(path)), fd_(std::move(fd)) {
    reader_ = std::thread([this] { read_messages(); });
  }

  ~QmpConnection() override {
    {
      const std::lock_guard lock(mutex_);
      destroyed_ = true;
    }
    ::shutdown(fd_.get(), SHUT_RDWR);
    reader_.join();
  }

  // Waits for QEMU's greeting and answers it.
  Result<void> greet(int timeout_ms, int64_t deadline_ns, const std::function<bool()>& alive) {
    std::unique_lock lock(mutex_);
    while (!greeted_ && !closed_) {
      changed_.wait_for(lock, milliseconds(kAlivePollMs));
      if (greeted_ || closed_) break;
      if (alive && !alive()) return died();
      if (monotonic_ns() > deadline_ns)
        return fail(Code::timed_out, "{}: QEMU does not greet; is another client connected?",
                    path_);
    }
    if (closed_) return died();
    lock.unlock();
    auto enabled = execute("qmp_capabilities", {}, timeout_ms);
    if (!enabled && enabled.error().code == Code::guest_failed) return died();
    SNOW_TRY(std::move(enabled));
    return {};
  }

  Result<json> execute(const std::string& command, const json& arguments, int timeout_ms) override {
    const int64_t deadline_ns = monotonic_ns() + int64_t{timeout_ms} * 1'000'000;
    json request = {{"execute", command}};
    if (!arguments.is_null()) request["arguments"] = arguments;
    std::unique_lock lock(mutex_);
    if (closed_) return fail(Code::guest_failed, "QMP {}: QEMU is gone", command);
    const int64_t id = ++last_id_;
    request["id"] = id;
    pending_[id] = std::nullopt;
    lock.unlock();
    auto sent = send_line(request.dump() + "\n", command, deadline_ns);
    lock.lock();
    if (!sent) {
      pending_.erase(id);
      return tl::unexpected<Error>(std::move(sent).error());
    }
    const auto wait_until =
        std::chrono::steady_clock::now() + std::chrono::nanoseconds(deadline_ns - monotonic_ns());
    const auto done = [&] { return pending_[id].has_value() || closed_; };
    const bool in_time = changed_.wait_until(lock, wait_until, done);
    std::optional<json> answer = std::move(pending_[id]);
    pending_.erase(id);
    lock.unlock();
    if (!answer) {
      if (in_time) return fail(Code::guest_failed, "QMP {}: QEMU ended meanwhile", command);
      return fail(Code::timed_out, "QMP {}: no answer within {} ms", command, timeout_ms);
    }
    if (const auto result = answer->find("return"); result != answer->end())
      return json(std::move(*result));
    const auto error = answer->find("error");
    std::string text = error != answer->end() ? text_of(*error, "desc") : "";
    if (text.empty()) text = "an answer without result or error";
    return fail(Code::host_failed, "QMP {}: {}", command, text.substr(0, kMaxErrorBytes));
  }

  void on_event(std::function<void(const json&)> callback) override {
    const std::lock_guard callbacks(callback_mutex_);
    std::deque<json> kept;
    {
      const std::lock_guard lock(mutex_);
      kept.swap(kept_events_);
    }
    for (const json& event : kept) callback(event);
    event_callback_ = std::move(callback);
  }

  void on_close(std::function<void()> callback) override {
    const std::lock_guard callbacks(callback_mutex_);
    if (close_reported_) {
      callback();
    } else {
      close_callback_ = std::move(callback);
    }
  }

  std::unique_ptr<Watch> watch(const std::string& event) override {
    auto made = std::make_unique<EventWatch>(*this, event);
    const std::lock_guard lock(mutex_);
    watches_.insert(made.get());
    return made;
  }

 private:
  class EventWatch : public Watch {
   public:
    EventWatch(QmpConnection& owner, std::string name) : event(std::move(name)), owner_(owner) {}
    ~EventWatch() override {
      const std::lock_guard lock(owner_.mutex_);
      owner_.watches_.erase(this);
    }
    Result<json> next(int timeout_ms) override {
      std::unique_lock lock(owner_.mutex_);
      owner_.changed_.wait_for(lock, milliseconds(timeout_ms),
                               [&] { return !events.empty() || owner_.closed_; });
      if (!events.empty()) {
        json first = std::move(events.front());
        events.pop_front();
        return first;
      }
      if (owner_.closed_) return fail(Code::guest_failed, "QMP event {}: QEMU ended", event);
      return fail(Code::timed_out, "QMP event {}: not within {} ms", event, timeout_ms);
    }
    const std::string event;
    std::deque<json> events;  // under the owner's mutex_

   private:
    QmpConnection& owner_;
  };

  [[nodiscard]] tl::unexpected<Error> died() const {
    return fail(Code::host_failed, "{}: QEMU died at its start; see its log", path_);
  }

  // QEMU may have stopped reading, so no write waits longer than the command.
  Result<void> send_line(std::string_view line, const std::string& command, int64_t deadline_ns) {
    const std::lock_guard lock(send_mutex_);
    while (!line.empty()) {
      const ssize_t sent = ::send(fd_.get(), line.data(), line.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) {
        line.remove_prefix(static_cast<size_t>(sent));
        continue;
      }
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && errno != EAGAIN)
        return fail_errno(Code::guest_failed, "QMP {}: cannot send", command);
      const int64_t left_ms = (deadline_ns - monotonic_ns()) / 1'000'000;
      pollfd poll_fd = {fd_.get(), POLLOUT, 0};
      if (left_ms <= 0 || ::poll(&poll_fd, 1, static_cast<int>(left_ms)) == 0) {
        // Part of the line may be out: the connection is of no use any more.
        ::shutdown(fd_.get(), SHUT_RDWR);
        return fail(Code::timed_out, "QMP {}: QEMU does not read its commands", command);
      }
    }
    return {};
  }

  void read_messages() {
    QmpParser parser;
    std::vector<char> buffer(65536);
    std::vector<json> messages;
    for (;;) {
      const ssize_t got = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) break;
      messages.clear();
      auto parsed = parser.feed({buffer.data(), static_cast<size_t>(got)}, messages);
      for (json& message : messages) take(std::move(message));
      if (!parsed) {
        log_warn("{}: {}; connection closed", path_, parsed.error().message);
        ::shutdown(fd_.get(), SHUT_RDWR);
        break;
      }
    }
    report_close();
  }

  void take(json message) {
    if (message.contains("event")) return take_event(std::move(message));
    const std::lock_guard lock(mutex_);
    if (message.contains("QMP")) {
      greeted_ = true;
    } else if (const auto id = message.find("id"); id != message.end() && id->is_number_integer()) {
      // An id that nobody waits for: its command timed out.
      const auto waiting = pending_.find(id->get<int64_t>());
      if (waiting != pending_.end() && !waiting->second) waiting->second = std::move(message);
    }
    changed_.notify_all();
  }

  void take_event(json message) {
    const std::lock_guard callbacks(callback_mutex_);
    {
      const std::lock_guard lock(mutex_);
      const std::string name = text_of(message, "event");
      for (EventWatch* watch : watches_) {
        if (watch->event == name && watch->events.size() < kMaxKeptEvents)
          watch->events.push_back(message);
      }
      changed_.notify_all();
      if (!event_callback_) {
        if (kept_events_.size() >= kMaxKeptEvents) kept_events_.pop_front();
        kept_events_.push_back(std::move(message));
        return;
      }
    }
    event_callback_(message);
  }

  void report_close() {
    bool destroyed = false;
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      destroyed = destroyed_;
      changed_.notify_all();
    }
    const std::lock_guard callbacks(callback_mutex_);
    close_reported_ = true;
    if (close_callback_ && !destroyed) close_callback_();
  }

  const std::string path_;
  const Fd fd_;
  std::thread reader_;

  std::mutex send_mutex_;      // whole lines
  std::mutex callback_mutex_;  // held during callbacks; taken before mutex_
  std::function<void(const json&)> event_callback_;
  std::function<void()> close_callback_;
  bool close_reported_ = false;

  std::mutex mutex_;  // all below
  std::condition_variable changed_;
  bool greeted_ = false;
  bool closed_ = false;
  bool destroyed_ = false;
  int64_t last_id_ = 0;
  std::map<int64_t, std::optional<json>> pending_;
  std::deque<json> kept_events_;
  std::set<EventWatch*> watches_;
};

}  // namespace

Result<std::unique_ptr<Qmp>> Qmp::connect(const std::string& path, int timeout_ms,
                                          const std::function<bool()>& alive) {
  const int64_t deadline_ns = monotonic_ns() + int64_t{timeout_ms} * 1'000'000;
  int64_t next_alive_ns = 0;
  for (;;) {
    auto fd = connect_jail_socket(path);
    if (fd) {
      auto connection = std::make_unique<QmpConnection>(*std::move(fd), path);
      SNOW_TRY(connection->greet(timeout_ms, deadline_ns, alive));
      return connection;
    }
    if (fd.error().code != Code::unavailable) return tl::unexpected<Error>(std::move(fd).error());
    const int64_t now_ns = monotonic_ns();
    if (alive && now_ns >= next_alive_ns) {
      if (!alive()) return fail(Code::host_failed, "{}: QEMU died at its start; see its log", path);
      next_alive_ns = now_ns + int64_t{kAlivePollMs} * 1'000'000;
    }
    if (now_ns > deadline_ns)
      return fail(Code::timed_out, "{}: QEMU did not open its control socket within {} ms", path,
                  timeout_ms);
    std::this_thread::sleep_for(milliseconds(kConnectPollMs));
  }
}

}  // namespace snow
