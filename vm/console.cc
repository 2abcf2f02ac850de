#include "vm/console.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <optional>
#include <vector>

#include "base/file.h"
#include "base/log.h"
#include "qemu/jail_files.h"

namespace snow {
namespace {

// Appends to two files of at most half the limit each: when `path` is full it becomes `path`.1.
// What cannot be written (disk full) is dropped: the guest's output must be read on regardless.
class BoundedLog {
 public:
  BoundedLog(std::string path, size_t limit_bytes)
      : path_(std::move(path)), half_(limit_bytes / 2) {}

  void append(std::string_view bytes) {
    while (!bytes.empty()) {
      if (!file_ && !open()) return;
      const std::string_view part = bytes.substr(0, half_ - std::min(half_, used_));
      if (part.empty()) {
        file_.reset();
        if (::rename(path_.c_str(), (path_ + ".1").c_str()) < 0) ::unlink(path_.c_str());
        continue;
      }
      const auto written = write_all(file_.get(), std::as_bytes(std::span(part)), path_);
      if (!written && !failed_) log_warn("console log is incomplete: {}", written.error().message);
      failed_ = !written;
      used_ += part.size();
      bytes.remove_prefix(part.size());
    }
  }

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  bool open() {
    file_ = Fd(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600));
    struct stat status {};
    if (!file_ || ::fstat(file_.get(), &status) < 0) {
      if (!failed_) log_warn("console log {} cannot be written: {}", path_, strerror(errno));
      failed_ = true;
      file_.reset();
      return false;
    }
    used_ = static_cast<size_t>(status.st_size);
    return true;
  }

  const std::string path_;
  const size_t half_;
  Fd file_;
  size_t used_ = 0;
  bool failed_ = false;  // the last write; so that a full disk is logged once
};

// What waits for one session; guarded by its console's mutex.
struct Listener {
  std::string waiting;
  uint64_t lost = 0;
  std::condition_variable changed;

  void add(std::string_view bytes) {
    waiting.append(bytes);
    if (waiting.size() > ConsoleHub::kSessionBytes) {
      const size_t excess = waiting.size() - ConsoleHub::kSessionBytes / 2;
      lost += excess;
      waiting.erase(0, excess);
    }
    changed.notify_all();
  }
};

}  // namespace

struct ConsoleHub::Console {
  Console(std::string name, uint64_t the_key, int the_epoll)
      : vm(std::move(name)), key(the_key), epoll(the_epoll) {}

  // All of these want `mutex` held.
  void connect(Fd new_fd);
  void disconnect();
  // Reads at most `limit` bytes, as far as there are any; false: the connection is over.
  bool drain(size_t limit);
  void flush();
  void watch(bool output);
  void finish();

  const std::string vm;
  const uint64_t key;
  std::mutex mutex;
  int epoll;              // the hub's; not used after finish()
  Fd fd;                  // none while the VM's QEMU is being replaced
  bool watching = false;  // for output
  bool ended = false;
  std::optional<BoundedLog> log;
  std::string input;  // waits for the guest
  std::vector<std::shared_ptr<Listener>> listeners;
};

void ConsoleHub::Console::watch(bool output) {
  if (output == watching) return;
  watching = output;
  epoll_event event{};
  event.events = output ? EPOLLIN | EPOLLOUT : EPOLLIN;
  event.data.u64 = key;
  ::epoll_ctl(epoll, EPOLL_CTL_MOD, fd.get(), &event);
}

void ConsoleHub::Console::connect(Fd new_fd) {
  if (fd) drain(kLogBytes);
  disconnect();
  fd = std::move(new_fd);
  watching = false;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = key;
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd.get(), &event);
  flush();
}

void ConsoleHub::Console::disconnect() { fd.reset(); }  // also leaves the epoll set

bool ConsoleHub::Console::drain(size_t limit) {
  std::array<char, 16384> buffer;
  for (size_t total = 0; total < limit;) {
    const ssize_t got = ::recv(fd.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return true;
    if (got <= 0) return false;
    const std::string_view bytes(buffer.data(), static_cast<size_t>(got));
    log->append(bytes);
    for (const auto& listener : listeners) listener->add(bytes);
    total += bytes.size();
  }
  return true;
}

void ConsoleHub::Console::flush() {
  while (fd && !input.empty()) {
    const ssize_t sent = ::send(fd.get(), input.data(), input.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) break;  // full, or over: then the reading side notices
    input.erase(0, static_cast<size_t>(sent));
  }
  if (fd) watch(!input.empty());
}

void ConsoleHub::Console::finish() {
  if (ended) return;
  if (fd) drain(kLogBytes);
  disconnect();
  ended = true;
  input.clear();
  for (const auto& listener : listeners) listener->changed.notify_all();
}

namespace {

class Session : public Host::ConsoleSession {
 public:
  Session(std::shared_ptr<ConsoleHub::Console> console, std::shared_ptr<Listener> listener)
      : console_(std::move(console)), listener_(std::move(listener)) {}
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() override {
    const std::lock_guard lock(console_->mutex);
    std::erase(console_->listeners, listener_);
  }

  std::optional<std::string> read(int timeout_ms) override {
    std::unique_lock lock(console_->mutex);
    const auto ready = [&] { return !listener_->waiting.empty() || console_->ended; };
    if (timeout_ms < 0) {
      listener_->changed.wait(lock, ready);
    } else if (!listener_->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), ready)) {
      return std::nullopt;
    }
    std::string bytes;
    if (listener_->lost > 0) {
      bytes = fmt::format("\r\n[{} bytes of output were lost: read too slowly]\r\n",
                          std::exchange(listener_->lost, 0));
    }
    bytes += std::exchange(listener_->waiting, {});
    return bytes;  // empty only at the end
  }

  Result<void> write(std::string_view bytes) override {
    const std::lock_guard lock(console_->mutex);
    if (console_->ended) {
      return fail(Code::wrong_state, "VM '{}' has ended; its console takes no input", console_->vm);
    }
    console_->flush();
    if (console_->input.size() + bytes.size() > ConsoleHub::kInputBytes) {
      return fail(Code::wrong_state,
                  "VM '{}' does not read its console: {} bytes wait for it already; is it paused?",
                  console_->vm, console_->input.size());
    }
    console_->input.append(bytes);
    console_->flush();
    return {};
  }

 private:
  const std::shared_ptr<ConsoleHub::Console> console_;
  const std::shared_ptr<Listener> listener_;
};

}  // namespace

Result<std::unique_ptr<ConsoleHub>> ConsoleHub::start() {
  std::unique_ptr<ConsoleHub> hub(new ConsoleHub);
  hub->epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
  hub->wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  if (!hub->epoll_ || !hub->wake_ ||
      ::epoll_ctl(hub->epoll_.get(), EPOLL_CTL_ADD, hub->wake_.get(), &event) < 0) {
    return fail_errno(Code::host_failed, "consoles: epoll");
  }
  hub->thread_ = std::thread([raw = hub.get()] { raw->loop(); });
  return hub;
}

ConsoleHub::~ConsoleHub() {
  if (thread_.joinable()) {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    const uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof one);
    thread_.join();
  }
  for (const auto& [key, console] : by_key_) {
    const std::lock_guard lock(console->mutex);
    console->finish();
  }
}

void ConsoleHub::loop() {
  std::array<epoll_event, 64> ready;
  for (;;) {
    const int count = ::epoll_wait(epoll_.get(), ready.data(), ready.size(), -1);
    for (int i = 0; i < count; ++i) {
      std::shared_ptr<Console> console;
      {
        const std::lock_guard lock(mutex_);
        if (stopping_) return;
        const auto found = by_key_.find(ready[static_cast<size_t>(i)].data.u64);
        if (found == by_key_.end()) continue;  // forgotten since
        console = found->second;
      }
      // What kind of event it was does not matter, only what a read says now: the connection may
      // have been replaced since.
      const std::lock_guard lock(console->mutex);
      if (!console->fd) continue;
      if (!console->drain(size_t{64} << 10)) {
        console->disconnect();
      } else {
        console->flush();
      }
    }
  }
}

std::shared_ptr<ConsoleHub::Console> ConsoleHub::find(const std::string& vm) {
  const std::lock_guard lock(mutex_);
  const auto found = keys_.find(vm);
  return found == keys_.end() ? nullptr : by_key_.at(found->second);
}

Result<void> ConsoleHub::attach(const std::string& vm, const std::string& socket_path,
                                const std::string& log_path) {
  SNOW_ASSIGN(Fd fd, connect_jail_socket(socket_path));
  std::shared_ptr<Console> console;
  {
    const std::lock_guard lock(mutex_);
    auto [place, added] = keys_.try_emplace(vm, next_key_);
    if (added) {
      by_key_[next_key_] = std::make_shared<Console>(vm, next_key_, epoll_.get());
      ++next_key_;
    }
    console = by_key_.at(place->second);
  }
  const std::lock_guard lock(console->mutex);
  if (console->ended) {
    return fail(Code::wrong_state, "VM '{}' has ended; its console cannot be attached", vm);
  }
  if (!console->log || console->log->path() != log_path) console->log.emplace(log_path, kLogBytes);
  console->connect(std::move(fd));
  return {};
}

void ConsoleHub::end(const std::string& vm) {
  const auto console = find(vm);
  if (console == nullptr) return;
  const std::lock_guard lock(console->mutex);
  console->finish();
}

void ConsoleHub::forget(const std::string& vm) {
  end(vm);
  const std::lock_guard lock(mutex_);
  const auto found = keys_.find(vm);
  if (found == keys_.end()) return;
  by_key_.erase(found->second);
  keys_.erase(found);
}

std::string ConsoleHub::read_log(const std::string& log_path) {
  std::string text;
  for (const std::string& path : {log_path + ".1", log_path}) {
    if (const auto part = read_file(path, kLogBytes)) text += *part;
  }
  return text;
}

Result<std::string> ConsoleHub::log(const std::string& vm) {
  const auto console = find(vm);
  if (console == nullptr) return fail(Code::not_found, "VM '{}' has no console", vm);
  const std::lock_guard lock(console->mutex);
  if (!console->log) return std::string();
  return read_log(console->log->path());
}

Result<std::unique_ptr<Host::ConsoleSession>> ConsoleHub::open(const std::string& vm) {
  const auto console = find(vm);
  if (console == nullptr) return fail(Code::not_found, "VM '{}' has no console", vm);
  const std::lock_guard lock(console->mutex);
  if (console->ended) {
    return fail(Code::wrong_state, "VM '{}' has ended; `snow logs {}` shows what it printed", vm,
                vm);
  }
  if (console->listeners.size() >= kSessions) {
    return fail(Code::no_room, "VM '{}' has {} console sessions already; end one first", vm,
                kSessions);
  }
  auto listener = std::make_shared<Listener>();
  console->listeners.push_back(listener);
  return std::make_unique<Session>(console, std::move(listener));
}

}  // namespace snow
