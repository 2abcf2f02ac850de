#include "guest/agent/agent_harness.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>

// After the system headers: it brings its own copies of their constants.
#include <linux/capability.h>

namespace snow::guest {

using channel::Fields;
using channel::Message;
using channel::Type;

namespace {

std::string cgroup2_mount() {
  for (const std::string& line : split(read_small_file("/proc/self/mounts").value_or(""), '\n')) {
    const auto parts = split(line, ' ');
    if (parts.size() > 2 && parts[2] == "cgroup2") return parts[1];
  }
  return "";
}

void write_whole(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (put <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(put));
  }
}

[[noreturn]] void fail_child(const char* what) {
  perror(what);
  _exit(99);
}

}  // namespace

std::string AgentHarness::missing() {
  return geteuid() == 0 ? "" : "needs root for namespaces; run the tests as root to test the agent";
}

AgentHarness::AgentHarness() {
  char name[] = "/tmp/snow-agent-test-XXXXXX";
  folder_ = mkdtemp(name);
  for (const char* part : {"/run", "/etc", "/etc/snow", "/etc/snow/fork.d", "/cgroup"}) {
    mkdir((folder_ + part).c_str(), 0755);
  }
  chmod(folder_.c_str(), 0755);
  for (const char* file : {"/etc/passwd", "/etc/group"}) {
    write_small_file(folder_ + file, read_small_file(file).value_or(""), O_CREAT);
  }
  write_small_file(etc_path() + "/machine-id", "0123456789abcdef0123456789abcdef\n", O_CREAT);
  write_small_file(etc_path() + "/hostname", "before\n", O_CREAT);
  const std::string root = cgroup2_mount();
  if (!root.empty()) {
    cgroup_ = root + folder_.substr(4);
    if (mkdir(cgroup_.c_str(), 0755) != 0) cgroup_.clear();
  }
  int ends[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  port_ = Fd(ends[0]);
  const Fd theirs(ends[1]);
  fcntl(port_.get(), F_SETFD, FD_CLOEXEC);
  pid_ = fork();
  if (pid_ == 0) run_agent(theirs.get());
}

// The child's side: namespaces, then exec.
void AgentHarness::run_agent(int port) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  setenv("LSAN_OPTIONS", "detect_leaks=0", 0);  // ptrace of frozen children does not work
  if (unshare(CLONE_NEWUTS | CLONE_NEWNS | CLONE_NEWNET) != 0) fail_child("unshare");
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) fail_child("mount /");
  const std::string cgroup = folder_ + "/cgroup";
  if (has_cgroup() && mount(cgroup_.c_str(), cgroup.c_str(), nullptr, MS_BIND, nullptr) != 0) {
    fail_child("bind cgroup");
  }
  // sysfs shows the network of who mounted it.
  if (mount("sysfs", "/sys", "sysfs", 0, nullptr) != 0) fail_child("mount /sys");
  if (mount(etc_path().c_str(), "/etc", nullptr, MS_BIND, nullptr) != 0) fail_child("bind /etc");
  if (prctl(PR_CAPBSET_DROP, CAP_SYS_TIME) != 0) fail_child("drop CAP_SYS_TIME");
  sethostname("before", 6);
  const std::string descriptor = "fd:" + std::to_string(port);
  execl(SNOW_AGENT_PATH, "snow-agent", "--port", descriptor.c_str(), "--cgroup-root",
        has_cgroup() ? cgroup.c_str() : "none", "--run", run_path().c_str(), nullptr);
  fail_child(SNOW_AGENT_PATH);
}

AgentHarness::~AgentHarness() {
  kill(pid_, SIGTERM);
  if (has_cgroup()) {
    for (const std::string& name : list_directory(cgroup_)) {
      write_small_file(cgroup_ + "/" + name + "/cgroup.freeze", "0");
    }
  }
  for (int i = 0; i < 200 && waitpid(pid_, nullptr, WNOHANG) == 0; ++i) {
    if (i == 100) kill(pid_, SIGKILL);
    usleep(20'000);
  }
  if (has_cgroup()) {
    write_small_file(cgroup_ + "/cgroup.kill", "1");
    for (int i = 0; i < 200; ++i) {
      for (const std::string& name : list_directory(cgroup_)) rmdir((cgroup_ + "/" + name).c_str());
      if (rmdir(cgroup_.c_str()) == 0) break;
      usleep(20'000);
    }
    EXPECT_NE(access(cgroup_.c_str(), F_OK), 0) << cgroup_ << " is left behind";
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

void AgentHarness::send(Type type, uint32_t stream, const std::string& payload) {
  send_raw(channel::encode_frame({type, stream, payload}));
}

void AgentHarness::send_raw(const std::string& bytes) { write_whole(port_.get(), bytes); }

void AgentHarness::credit(uint32_t stream, uint32_t bytes) {
  std::string payload;
  for (int i = 0; i < 4; ++i) payload.push_back(static_cast<char>((bytes >> (8 * i)) & 0xff));
  send(Type::credit, stream, payload);
}

bool AgentHarness::fill(int timeout_ms) {
  pollfd wait{port_.get(), POLLIN, 0};
  if (poll(&wait, 1, timeout_ms) <= 0) return false;
  char buffer[65536];
  const ssize_t got = read(port_.get(), buffer, sizeof buffer);
  if (got <= 0) return false;
  std::vector<Message> messages;
  reader_.feed({buffer, static_cast<size_t>(got)}, messages);
  EXPECT_EQ(reader_.dropped(), 0u);
  messages_.insert(messages_.end(), messages.begin(), messages.end());
  return true;
}

std::optional<Message> AgentHarness::receive(int timeout_ms) {
  while (messages_.empty()) {
    if (!fill(timeout_ms)) return std::nullopt;
  }
  Message message = std::move(messages_.front());
  messages_.pop_front();
  return message;
}

std::optional<Message> AgentHarness::expect(Type type, int timeout_ms) {
  for (size_t looked = 0;; ++looked) {
    while (looked >= messages_.size()) {
      if (!fill(timeout_ms)) return std::nullopt;
    }
    if (messages_[looked].type != type) continue;
    Message message = std::move(messages_[looked]);
    messages_.erase(messages_.begin() + static_cast<long>(looked));
    return message;
  }
}

std::optional<Fields> AgentHarness::expect_fields(Type type) {
  const auto message = expect(type);
  EXPECT_TRUE(message) << "no message of type " << static_cast<int>(type);
  return message ? channel::decode_fields(message->payload) : std::nullopt;
}

uint32_t AgentHarness::open(Fields fields) {
  const uint32_t stream = next_stream_;
  next_stream_ += 2;
  send(Type::open, stream, fields);
  return stream;
}

uint32_t AgentHarness::open_shell(const std::string& script, Fields extra) {
  extra.merge(Fields{
      {"kind", "exec"}, {"argc", "3"}, {"argv.0", "sh"}, {"argv.1", "-c"}, {"argv.2", script}});
  return open(extra);
}

AgentHarness::Finished AgentHarness::finish(uint32_t stream) {
  Finished result;
  while (auto message = receive()) {
    if (message->stream != stream) continue;
    if (message->type == Type::data) {
      (message->payload[0] == 1 ? result.out : result.err) += message->payload.substr(1);
      credit(stream, static_cast<uint32_t>(message->payload.size() - 1));
    } else if (message->type == Type::closed) {
      const Fields fields = channel::decode_fields(message->payload).value_or(Fields{});
      result.code = channel::field(fields, "code");
      result.message = channel::field(fields, "message");
      result.exit = static_cast<int>(channel::number_field(fields, "exit").value_or(-1));
      return result;
    }
  }
  ADD_FAILURE() << "stream " << stream << " did not end";
  return result;
}

AgentHarness::Finished AgentHarness::shell(const std::string& script, const std::string& input) {
  const uint32_t stream = open_shell(script);
  if (!input.empty()) send(Type::data, stream, std::string(1, '\0') + input);
  send(Type::eof, stream, std::string(1, '\0'));
  return finish(stream);
}

AgentHarness::Local::Local(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  fd_ = Fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0) << path;
}

void AgentHarness::Local::send(Type type, uint32_t stream, const std::string& payload) {
  send_raw(channel::encode_local({type, stream, payload}));
}

void AgentHarness::Local::send_raw(const std::string& bytes) { write_whole(fd_.get(), bytes); }

std::optional<Message> AgentHarness::Local::receive(int timeout_ms) {
  while (messages_.empty()) {
    pollfd wait{fd_.get(), POLLIN, 0};
    char buffer[65536];
    if (poll(&wait, 1, timeout_ms) <= 0) return std::nullopt;
    const ssize_t got = read(fd_.get(), buffer, sizeof buffer);
    if (got <= 0) return std::nullopt;
    std::vector<Message> messages;
    EXPECT_TRUE(reader_.feed({buffer, static_cast<size_t>(got)}, messages));
    messages_.insert(messages_.end(), messages.begin(), messages.end());
  }
  Message message = std::move(messages_.front());
  messages_.pop_front();
  return message;
}

bool AgentHarness::Local::closed_by_agent() {
  pollfd wait{fd_.get(), POLLIN, 0};
  char byte;
  return poll(&wait, 1, 20'000) == 1 && read(fd_.get(), &byte, 1) <= 0;
}

}  // namespace snow::guest
