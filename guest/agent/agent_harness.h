// Runs the real snow-agent and speaks to it as the host does, over a socket pair in place of the
// virtio port. The agent gets namespaces of its own (UTS, mounts, network), a copy of a small /etc,
// a cgroup of its own to freeze, and no right to set the clock: the test machine stays as it is.
// Needs root. Everything it started or mounted is gone when it is destroyed.
#pragma once

#include <sys/types.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "guest/agent/util.h"
#include "guest/channel/message.h"

namespace snow::guest {

class AgentHarness {
 public:
  AgentHarness();
  ~AgentHarness();
  AgentHarness(const AgentHarness&) = delete;
  AgentHarness& operator=(const AgentHarness&) = delete;

  // "" or why the agent cannot be run here.
  static std::string missing();
  [[nodiscard]] bool has_cgroup() const { return !cgroup_.empty(); }

  void send(channel::Type type, uint32_t stream, const std::string& payload);
  void send(channel::Type type, uint32_t stream, const channel::Fields& fields) {
    send(type, stream, channel::encode_fields(fields));
  }
  void send_raw(const std::string& bytes);
  void credit(uint32_t stream, uint32_t bytes);

  // The next message; nullopt after `timeout_ms`.
  std::optional<channel::Message> receive(int timeout_ms = 20'000);
  // The next message of this type; others before it are kept for receive(). Fields of it.
  std::optional<channel::Message> expect(channel::Type type, int timeout_ms = 20'000);
  std::optional<channel::Fields> expect_fields(channel::Type type);

  // Runs `sh -c script` to its end and gives credit for all it prints.
  struct Finished {
    std::string out, err, code, message;
    int exit = -1;
  };
  Finished shell(const std::string& script, const std::string& input = "");
  uint32_t open_shell(const std::string& script, channel::Fields extra = {});
  uint32_t open(channel::Fields fields);
  Finished finish(uint32_t stream);

  // A local program's connection.
  class Local {
   public:
    explicit Local(const std::string& path);
    void send(channel::Type type, uint32_t stream, const std::string& payload);
    void send(channel::Type type, uint32_t stream, const channel::Fields& fields) {
      send(type, stream, channel::encode_fields(fields));
    }
    void send_raw(const std::string& bytes);
    // nullopt: the agent closed the connection, or nothing came in time.
    std::optional<channel::Message> receive(int timeout_ms = 20'000);
    bool closed_by_agent();

   private:
    Fd fd_;
    channel::LocalReader reader_;
    std::deque<channel::Message> messages_;
  };
  Local connect() { return Local(run_path() + "/agent.sock"); }

  [[nodiscard]] std::string run_path() const { return folder_ + "/run"; }
  [[nodiscard]] std::string etc_path() const { return folder_ + "/etc"; }
  [[nodiscard]] const std::string& folder() const { return folder_; }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  [[noreturn]] void run_agent(int port);
  bool fill(int timeout_ms);
  std::string folder_;
  std::string cgroup_;
  Fd port_;
  pid_t pid_ = -1;
  channel::FrameReader reader_;
  std::deque<channel::Message> messages_;
  uint32_t next_stream_ = 2;
};

}  // namespace snow::guest
