// One thread reads what the keeper sends and wakes whoever waits for an answer; another one calls
// the callbacks, so that a callback may itself ask the keeper.
#include "keeper/client.h"

#include <sys/socket.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "base/log.h"
#include "keeper/connect.h"
#include "keeper/protocol.h"
#include "lazyfs/lazyfs.h"

namespace snow {
namespace {

constexpr auto kAnswerLimit = std::chrono::seconds(60);  // the keeper itself ends a start after 30
constexpr int kEndLimitMs = 15'000;

struct Answer {
  Reply reply;
  Fd fd;
};

class KeeperClient final : public Keeper {
 public:
  explicit KeeperClient(KeeperConnection connection)
      : connection_(std::move(connection)),
        reader_([this] { read_answers(); }),
        caller_([this] { call_back(); }) {}

  ~KeeperClient() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    ::shutdown(connection_.socket.get(), SHUT_RDWR);
    reader_.join();
    caller_.join();
  }

  bool started_now() const override { return connection_.started_now; }
  pid_t pid() const override { return connection_.pid; }

  Result<Fd> fuse_fd() override {
    SNOW_ASSIGN(Answer answer, call({.operation = Operation::fuse_fd}));
    return std::move(answer.fd);
  }

  Result<void> keep_fuse_fd(int fd) override {
    SNOW_TRY(call({.operation = Operation::keep_fuse_fd}, fd));
    return {};
  }

  Result<Fd> table_fd() override {
    SNOW_ASSIGN(Answer answer,
                call({.operation = Operation::table_fd, .bytes = lazyfs_table_bytes()}));
    if (!answer.fd) return fail(Code::corrupt, "the keeper sent no table");
    return std::move(answer.fd);
  }

  Result<pid_t> spawn(const SpawnSpec& spec) override {
    SNOW_TRY(check_spawn_spec(spec));
    SNOW_ASSIGN(const Answer answer, call({.operation = Operation::spawn, .spec = spec}));
    return answer.reply.pid;
  }

  Result<void> kill(pid_t pid) override { return ask(Operation::kill, pid); }
  Result<void> hold(pid_t pid) override { return ask(Operation::hold, pid); }
  Result<void> let_go(pid_t pid) override { return ask(Operation::let_go, pid); }

  void forget(pid_t pid) override {
    // Nobody waits for the answer: the next list() comes after it in any case.
    Request request{.operation = Operation::forget, .pid = pid};
    {
      const std::lock_guard lock(mutex_);
      request.number = next_number_++;
    }
    if (const auto text = format_request(request)) {
      (void)send_packet(connection_.socket.get(), *text);
    }
  }

  Result<std::vector<KeptProcess>> list() override {
    std::vector<KeptProcess> all;
    for (pid_t after = 0;;) {
      SNOW_ASSIGN(Answer answer, call({.operation = Operation::list, .pid = after}));
      auto& part = answer.reply.processes;
      all.insert(all.end(), part.begin(), part.end());
      if (!answer.reply.more || part.empty()) return all;
      after = part.back().pid;
    }
  }

  void on_exit(std::function<void(const KeptProcess&)> callback) override {
    std::unique_lock lock(mutex_);
    on_exit_ = std::move(callback);
    changed_.notify_all();
    if (!on_exit_) await_callback(lock);
  }

  void on_lost(std::function<void()> callback) override {
    std::unique_lock lock(mutex_);
    on_lost_ = std::move(callback);
    changed_.notify_all();
    if (!on_lost_) await_callback(lock);
  }

  Result<void> shut_down() override {
    {
      const std::lock_guard lock(mutex_);
      asked_to_end_ = true;
    }
    SNOW_TRY(call({.operation = Operation::shut_down}));
    if (!await_keeper_end(connection_.keeper.get(), kEndLimitMs)) {
      return fail(Code::timed_out, "the keeper does not end; keeper.log says why");
    }
    return {};
  }

 private:
  Result<void> ask(Operation operation, pid_t pid) {
    if (pid <= 0) return fail(Code::invalid, "process {}: not a process", pid);
    SNOW_TRY(call({.operation = operation, .pid = pid}));
    return {};
  }

  static tl::unexpected<Error> lost() {
    return fail(Code::unavailable, "the keeper has ended, and all VMs with it; restart the daemon");
  }

  Result<Answer> call(Request request, int fd = -1) {
    {
      const std::lock_guard lock(mutex_);
      if (lost_) return lost();
      request.number = next_number_++;
      waiting_[request.number] = std::nullopt;
    }
    auto answer = send_and_wait(request, fd);
    const std::lock_guard lock(mutex_);
    waiting_.erase(request.number);
    return answer;
  }

  Result<Answer> send_and_wait(const Request& request, int fd) {
    SNOW_ASSIGN(const std::string text, format_request(request));
    if (!send_packet(connection_.socket.get(), text, fd)) return lost();
    std::unique_lock lock(mutex_);
    std::optional<Answer>& place = waiting_[request.number];
    const bool in_time =
        changed_.wait_for(lock, kAnswerLimit, [&] { return lost_ || place.has_value(); });
    if (!in_time) return fail(Code::timed_out, "the keeper does not answer; see keeper.log");
    if (!place) return lost();
    if (place->reply.error) return tl::unexpected<Error>(std::move(*place->reply.error));
    return std::move(*place);
  }

  void read_answers() {
    for (;;) {
      auto packet = receive_packet(connection_.socket.get());
      if (!packet || packet->end) break;
      auto reply = parse_reply(packet->text);
      if (!reply) {
        log_warn("from the keeper: {}", reply.error().message);
        continue;
      }
      take(std::move(*reply), std::move(packet->fd));
    }
    {
      const std::lock_guard lock(mutex_);
      lost_ = true;
      // Our own closing is not the keeper's end, and nobody is to wait for that.
      if (closing_) return;
    }
    changed_.notify_all();
    await_keeper_end(connection_.keeper.get(), kEndLimitMs);
  }

  void take(Reply reply, Fd fd) {
    {
      const std::lock_guard lock(mutex_);
      if (reply.number == 0 && !reply.error) {
        exits_.push_back(std::move(reply.processes[0]));
      } else if (const auto at = waiting_.find(reply.number); at != waiting_.end()) {
        at->second = Answer{std::move(reply), std::move(fd)};
      }
    }
    changed_.notify_all();
  }

  void await_callback(std::unique_lock<std::mutex>& lock) {
    changed_.wait(lock, [this] { return !calling_; });
  }

  void call_back() {
    std::unique_lock lock(mutex_);
    for (;;) {
      const auto loss_to_tell = [this] { return lost_ && !asked_to_end_ && on_lost_; };
      changed_.wait(lock,
                    [&] { return closing_ || (!exits_.empty() && on_exit_) || loss_to_tell(); });
      if (closing_) return;
      std::function<void()> call;
      if (!exits_.empty() && on_exit_) {
        call = [callback = on_exit_, process = std::move(exits_.front())] { callback(process); };
        exits_.pop_front();
      } else {
        call = std::exchange(on_lost_, nullptr);
      }
      calling_ = true;
      lock.unlock();
      call();
      lock.lock();
      calling_ = false;
      changed_.notify_all();
    }
  }

  KeeperConnection connection_;
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t next_number_ = kWelcome + 2;
  std::map<uint64_t, std::optional<Answer>> waiting_;
  std::deque<KeptProcess> exits_;
  std::function<void(const KeptProcess&)> on_exit_;
  std::function<void()> on_lost_;
  bool calling_ = false;  // one of the two, on the thread caller_
  bool lost_ = false;
  bool closing_ = false;
  bool asked_to_end_ = false;
  std::thread reader_;  // last: they use what is above
  std::thread caller_;
};

}  // namespace

Result<std::unique_ptr<Keeper>> Keeper::connect(const Options& options) {
  SNOW_ASSIGN(KeeperConnection connection, connect_keeper(options));
  return std::unique_ptr<Keeper>(std::make_unique<KeeperClient>(std::move(connection)));
}

}  // namespace snow
