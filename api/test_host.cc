#include "api/test_host.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <thread>

#include "base/file.h"

namespace snow {
namespace {

using nlohmann::json;

// A stream that a program of ours feeds: `on_input` is called with what the client writes.
class TestStream : public GuestStream {
 public:
  explicit TestStream(TestHost& host) : host_(host) { ++host_.streams; }
  ~TestStream() override { --host_.streams; }

  Result<void> write(std::string_view bytes) override {
    if (on_input) on_input(*this, bytes);
    return {};
  }
  Result<void> write_eof() override {
    if (on_eof) on_eof(*this);
    return {};
  }
  std::optional<Chunk> read(int timeout_ms) override {
    std::unique_lock lock(mutex_);
    const auto some = [&] { return !chunks_.empty(); };
    if (timeout_ms < 0) {
      changed_.wait(lock, some);
    } else if (!changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), some)) {
      return std::nullopt;
    }
    Chunk chunk = chunks_.front();
    if (!chunk.end) chunks_.pop_front();
    return chunk;
  }
  Result<int> outcome() override {
    const std::lock_guard lock(mutex_);
    return outcome_;
  }
  void send_signal(int number) override {
    host_.last_signal = number;
    end(128 + number);
  }
  void resize(unsigned rows, unsigned columns) override {
    if (on_resize) on_resize(*this, rows, columns);
  }

  void print(int fd, std::string bytes) {
    const std::lock_guard lock(mutex_);
    chunks_.push_back({fd, std::move(bytes), false});
    changed_.notify_all();
  }
  void end(Result<int> outcome) {
    const std::lock_guard lock(mutex_);
    if (!chunks_.empty() && chunks_.back().end) return;
    outcome_ = std::move(outcome);
    chunks_.push_back({1, "", true});
    changed_.notify_all();
  }

  void wait_for_end() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !chunks_.empty() && chunks_.back().end; });
  }

  std::function<void(TestStream&, std::string_view)> on_input;
  std::function<void(TestStream&)> on_eof;
  std::function<void(TestStream&, unsigned, unsigned)> on_resize;

 private:
  TestHost& host_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Chunk> chunks_;
  Result<int> outcome_ = 0;
};

// Echoes in upper case; "bye" ends it.
class TestConsole : public Host::ConsoleSession {
 public:
  std::optional<std::string> read(int timeout_ms) override {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                           [&] { return !text_.empty() || ended_; })) {
      return std::nullopt;
    }
    return std::exchange(text_, "");
  }
  Result<void> write(std::string_view bytes) override {
    const std::lock_guard lock(mutex_);
    for (const char c : bytes) text_ += static_cast<char>(std::toupper(c));
    if (bytes.find("bye") != std::string_view::npos) ended_ = true;
    changed_.notify_all();
    return {};
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string text_;
  bool ended_ = false;
};

}  // namespace

Result<void> TestHost::only_mine(const std::string& vm) const {
  if (vm == vm_name || vm == vm_id) return {};
  return fail(Code::not_found, "VM '{}': no such VM; `snow ps -a` lists them", vm);
}

json TestHost::vm_json(const std::string& id, const std::string& name, int index) const {
  return {{"id", id},
          {"name", name},
          {"state", "running"},
          {"image", "tiny"},
          {"snapshot", nullptr},
          {"parent", index == 0 ? json() : json(vm_id)},
          {"generation", index == 0 ? 0 : 1},
          {"ticket", index == 0 ? json() : json(vm_ticket)},
          {"index", index},
          {"memory", 268435456},
          {"cpus", 1},
          {"machine", "microvm"},
          {"accelerator", "tcg"},
          {"network", "none"},
          {"mac", ""},
          {"uuid", "6f9a3c1e-0000-4000-8000-000000000000"},
          {"pid", 1},
          {"agent", true},
          {"created", "2026-01-01T00:00:00Z"},
          {"ended", nullptr},
          {"exit", nullptr},
          {"undone", json::array()},
          {"steps", {{"stop", 0.5}, {"save", 0.7}}},
          {"host", in_cluster ? json(host_name) : json()},
          {"waiting_for", waiting_for.empty() ? json() : json(waiting_for)}};
}

Result<json> TestHost::info() {
  const json cluster = {{"name", "snow"},     {"host", host_id}, {"host_name", host_name},
                        {"address", address}, {"etcd", etcd},    {"lease_left_ms", 7000},
                        {"trouble", ""}};
  return json{{"version", "0"},
              {"pid", ::getpid()},
              {"last_event", 7},
              {"limits", {{"memory", 1 << 30}, {"vms", 8}, {"fork", 4}, {"vcpus", 8}}},
              {"used", {{"memory", 1 << 28}, {"vms", 1}, {"vcpus", 1}}},
              {"accelerator", {{"name", "tcg"}, {"reason", "a test"}}},
              {"qemu", {{"path", "/usr/bin/qemu-system-x86_64"}, {"version", "7.2"}}},
              {"keeper", {{"pid", 1}}},
              {"lazyfs", {{"mount", "/run/snow/images"}}},
              {"cluster", in_cluster ? cluster : json()}};
}

Result<json> TestHost::import_image(const ImportRequest& request) {
  const std::lock_guard lock(mutex);
  imported_path = request.file;
  if (request.name == "tiny") {
    return fail(Code::exists, "image 'tiny': {} cannot have this name", request.file);
  }
  SNOW_ASSIGN(imported, snow::read_file(request.file));
  json made = *image("tiny");
  made["name"] = request.name;
  return made;
}

Result<json> TestHost::images() { return json::array({*image("tiny")}); }

Result<json> TestHost::image(const std::string& name) {
  if (name != "tiny") return fail(Code::not_found, "image '{}': no such image", name);
  return json{{"name", "tiny"}, {"disk", false},
              {"disk_size", 0}, {"kernel", true},
              {"initrd", true}, {"append", ""},
              {"memory", 0},    {"cpus", 0},
              {"stored", 4096}, {"created", "2026-01-01T00:00:00Z"}};
}

Result<void> TestHost::remove_image(const std::string& name) {
  if (auto found = image(name); !found) return tl::unexpected<Error>(found.error());
  return fail(Code::wrong_state, "image '{}': VM 'web' needs it; `snow rm web` first", name);
}

Result<json> TestHost::run(const RunRequest& request) {
  const std::lock_guard lock(mutex);
  last_run = request;
  json made = json::array();
  for (unsigned i = 0; i < request.count; ++i) {
    made.push_back(vm_json(fmt::format("0000000{}", i + 1), fmt::format("new-{}", i + 1), 0));
  }
  return made;
}

Result<json> TestHost::vms(bool all) {
  const std::lock_guard lock(mutex);
  json list = json::array({vm_json(vm_id, vm_name, 0)});
  if (host_name == "a") list.push_back(vm_json("00000001", "web-1", 1));
  if (all && host_name == "a") {
    json ended = vm_json("00000002", "web-2", 2);
    ended["state"] = "exited";
    ended["exit"] = {{"how", "exited"}, {"status", 3}};
    list.push_back(ended);
  }
  return list;
}

Result<json> TestHost::inspect(const std::string& vm) {
  while (hold_inspect) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  if (vm == "throws") throw std::runtime_error("thrown by a test");
  SNOW_TRY(only_mine(vm));
  const std::lock_guard lock(mutex);
  json found = vm_json(vm_id, vm_name, 0);
  found["state"] = state;
  return found;
}

Result<json> TestHost::pause(const std::string& vm) {
  SNOW_TRY(only_mine(vm));
  const std::lock_guard lock(mutex);
  if (state != "running") return fail(Code::wrong_state, "VM '{}': it is {}", vm, state);
  state = "paused";
  json found = vm_json(vm_id, vm_name, 0);
  found["state"] = state;
  return found;
}

Result<json> TestHost::resume(const std::string& vm) {
  SNOW_TRY(only_mine(vm));
  const std::lock_guard lock(mutex);
  state = "running";
  return vm_json(vm_id, vm_name, 0);
}

Result<json> TestHost::stop(const std::string& vm, unsigned) { return kill(vm); }

Result<json> TestHost::kill(const std::string& vm) {
  SNOW_TRY(only_mine(vm));
  return vm_json(vm_id, vm_name, 0);
}

Result<void> TestHost::remove(const std::string& vm, bool force) {
  SNOW_TRY(only_mine(vm));
  if (!force) return fail(Code::wrong_state, "VM '{}': it runs; `snow rm -f {}`", vm, vm);
  return {};
}

Result<json> TestHost::reserve(const std::string& vm, unsigned count, unsigned,
                               const Placing& placing) {
  SNOW_TRY(only_mine(vm));
  if (count > 4) return fail(Code::no_room, "ticket of {}: the limit is 4", count);
  const std::lock_guard lock(mutex);
  last_placing = placing;
  return json{{"ticket", vm_ticket},
              {"vm", vm_id},
              {"requested", count},
              {"granted", count},
              {"state", "reserved"},
              {"created", "2026-01-01T00:00:00Z"},
              {"expires", "2026-01-01T00:01:00Z"}};
}

Result<json> TestHost::tickets() { return json::array({*reserve(vm_name, 2, 0, {})}); }

Result<void> TestHost::give_back(const std::string& which) {
  if (which == vm_ticket) return {};
  return fail(Code::not_found, "ticket '{}': no such ticket", which);
}

Result<json> TestHost::fork(const ForkRequest& request) {
  SNOW_TRY(only_mine(request.vm));
  const std::lock_guard lock(mutex);
  last_fork = request;
  json clones = json::array();
  for (unsigned i = 1; i <= request.count; ++i) {
    clones.push_back(vm_json(fmt::format("0000000{}", i), fmt::format("{}-{}", vm_name, i),
                             static_cast<int>(i)));
  }
  return json{{"ticket", vm_ticket},
              {"parent", vm_json(vm_id, vm_name, 0)},
              {"clones", clones},
              {"steps", {{"stop", 0.5}, {"save", 0.7}, {"load", 1.5}}},
              {"undone", json::array({"no agent: the clock was not set"})}};
}

Result<json> TestHost::join(const std::string& which, int64_t) {
  if (which == "old") return fail(Code::spent, "ticket 'old': was joined already");
  if (which != vm_ticket) return fail(Code::not_found, "ticket '{}': no such ticket", which);
  return json{{"clones", json::array({{{"index", 1},
                                       {"vm", "00000001"},
                                       {"how", "exited"},
                                       {"status", 0},
                                       {"result", "aGVsbG8="}}})}};
}

Result<json> TestHost::kill_ticket(const std::string& which) {
  if (which == vm_ticket) return json{{"count", 2}};
  return fail(Code::not_found, "ticket '{}': no such ticket", which);
}

Result<json> TestHost::snapshot(const std::string& vm, const std::string& name) {
  SNOW_TRY(only_mine(vm));
  json made = *snapshot_info("warm");
  made["name"] = name;
  return made;
}

Result<json> TestHost::snapshots() { return json::array({*snapshot_info("warm")}); }

Result<json> TestHost::snapshot_info(const std::string& name) {
  if (name != "warm") return fail(Code::not_found, "snapshot '{}': no such snapshot", name);
  return json{{"name", "warm"},
              {"vm", vm_id},
              {"image", "tiny"},
              {"memory", 268435456},
              {"cpus", 1},
              {"machine", "microvm"},
              {"accelerator", "tcg"},
              {"network", "none"},
              {"stored", 1048576},
              {"created", "2026-01-01T00:00:00Z"}};
}

Result<void> TestHost::remove_snapshot(const std::string& name) {
  if (auto found = snapshot_info(name); !found) return tl::unexpected<Error>(found.error());
  return {};
}

Result<std::unique_ptr<GuestStream>> TestHost::exec(const std::string& vm,
                                                    const ExecRequest& request) {
  SNOW_TRY(only_mine(vm));
  auto stream = std::make_unique<TestStream>(*this);
  const auto& argv = request.argv;
  if (argv[0] == "echo") {
    stream->print(1, fmt::format("{}\n", fmt::join(argv.begin() + 1, argv.end(), " ")));
    stream->end(0);
  } else if (argv[0] == "cat") {
    stream->on_input = [](TestStream& self, std::string_view bytes) {
      self.print(1, std::string(bytes));
    };
    stream->on_eof = [](TestStream& self) { self.end(0); };
  } else if (argv[0] == "stuck") {
    stream->on_input = [](TestStream& self, std::string_view) { self.wait_for_end(); };
  } else if (argv[0] == "fail") {
    stream->print(2, argv[1]);
    stream->end(std::stoi(argv[2]));
  } else if (argv[0] == "flood") {
    stream->print(1, std::string(std::stoul(argv[1]), 'x'));
    stream->end(0);
  } else if (argv[0] == "size") {
    stream->on_resize = [](TestStream& self, unsigned rows, unsigned columns) {
      self.print(1, fmt::format("{} {}\n", rows, columns));
      self.end(0);
    };
  } else if (argv[0] != "wait") {
    stream->end(127);
  }
  return std::unique_ptr<GuestStream>(std::move(stream));
}

Result<std::unique_ptr<GuestStream>> TestHost::read_file(const std::string& vm,
                                                         const std::string& path) {
  SNOW_TRY(only_mine(vm));
  auto stream = std::make_unique<TestStream>(*this);
  const std::lock_guard lock(mutex);
  if (path == "/torn") {
    stream->print(1, "half of it");
    stream->end(fail(Code::guest_failed, "the guest failed midway"));
  } else if (const auto at = files.find(path); at == files.end()) {
    stream->end(fail(Code::not_found, "file '{}' in VM '{}': no such file", path, vm));
  } else {
    for (size_t from = 0; from < at->second.size(); from += 50'000) {
      stream->print(1, at->second.substr(from, 50'000));
    }
    stream->end(0);
  }
  return std::unique_ptr<GuestStream>(std::move(stream));
}

Result<std::unique_ptr<GuestStream>> TestHost::write_file(const std::string& vm,
                                                          const std::string& path, unsigned mode) {
  SNOW_TRY(only_mine(vm));
  auto stream = std::make_unique<TestStream>(*this);
  auto content = std::make_shared<std::string>();
  stream->on_input = [content](TestStream&, std::string_view bytes) { content->append(bytes); };
  stream->on_eof = [this, content, path, mode](TestStream& self) {
    if (path == "/full") return self.end(fail(Code::guest_failed, "file '/full': no space left"));
    const std::lock_guard lock(mutex);
    files[path] = *content;
    files[path + ":mode"] = fmt::format("{:o}", mode);
    self.end(0);
  };
  return std::unique_ptr<GuestStream>(std::move(stream));
}

Result<std::string> TestHost::console_log(const std::string& vm) {
  SNOW_TRY(only_mine(vm));
  return std::string("Linux version\r\nlogin: ");
}

Result<std::unique_ptr<Host::ConsoleSession>> TestHost::console(const std::string& vm) {
  SNOW_TRY(only_mine(vm));
  return std::unique_ptr<ConsoleSession>(std::make_unique<TestConsole>());
}

json TestHost::host_json(const std::string& which) const {
  const bool self = which == host_name;
  return {{"id", self ? host_id : "h00000000000b"},
          {"name", which},
          {"address", self ? address : "127.0.0.2:7171"},
          {"state", self      ? "alive"
                    : drained ? "drained"
                              : "gone"},
          {"self", self},
          {"capacity", {{"memory", 2147483648}, {"vms", 8}, {"vcpus", 16}}},
          {"used", {{"memory", 268435456}, {"vms", 1}, {"vcpus", 1}}},
          {"qemu", "7.2"},
          {"accelerator", "tcg"},
          {"since", "2026-01-01T00:00:00Z"},
          {"owed", self ? 0 : 3}};
}

Result<json> TestHost::make_cluster(const ClusterRequest& request) {
  const std::lock_guard lock(mutex);
  last_cluster = request;
  if (in_cluster) return fail(Code::exists, "this host is in cluster 'snow' already");
  return json::array({host_json(host_name)});
}

Result<json> TestHost::join_cluster(const JoinRequest& request) {
  const std::lock_guard lock(mutex);
  last_join = request;
  if (request.token != "secret") return fail(Code::denied, "join token: not of this cluster");
  return json::array({host_json(host_name), host_json("b")});
}

Result<json> TestHost::make_join_token(unsigned seconds) {
  const std::lock_guard lock(mutex);
  last_token_seconds = seconds;
  return json{{"token", "secret"}, {"expires", "2026-01-01T01:00:00Z"}};
}

Result<json> TestHost::hosts() {
  const std::lock_guard lock(mutex);
  if (!in_cluster) {
    return fail(Code::wrong_state, "this host is in no cluster; `snow cluster init` makes one");
  }
  return json::array({host_json(host_name), host_json("b")});
}

Result<json> TestHost::host(const std::string& which) {
  SNOW_ASSIGN(const json all, hosts());
  for (const json& one : all) {
    if (one["name"] != which && one["id"] != which) continue;
    json found = one;
    if (one["self"]) found["exchange"] = {{"offers", json::array()}};
    return found;
  }
  return fail(Code::not_found, "host '{}': no such host; `snow host ls` lists them", which);
}

Result<json> TestHost::drain_host(const std::string& which, bool drain) {
  {
    const std::lock_guard lock(mutex);
    drained = drain;
  }
  return host(which);
}

Result<void> TestHost::remove_host(const std::string& which, bool force) {
  SNOW_TRY(host(which));
  if (force) return {};
  return fail(Code::wrong_state, "host '{}': it is alive; `snow host rm -f {}`", which, which);
}

Result<json> TestHost::detach(const std::string& vm, int timeout_ms) {
  SNOW_TRY(only_mine(vm));
  const std::lock_guard lock(mutex);
  last_detach_ms = timeout_ms;
  return vm_json(vm_id, vm_name, 0);
}

void TestHost::serve_api(std::function<void(peer::Connection&)> session) {
  const std::lock_guard lock(mutex);
  api_session = std::move(session);
}

Result<json> TestHost::events(uint64_t after, int timeout_ms) {
  if (after < 9) {
    return json::array({{{"seq", after + 1},
                         {"time", "2026-01-01T00:00:00Z"},
                         {"type", "vm_running"},
                         {"vm", vm_id}}});
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(timeout_ms));
  return json::array();
}

}  // namespace snow
