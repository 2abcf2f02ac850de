// snow-agent: the guest's end of Thundersnow. One thread, one poll loop. It answers the host on the
// virtio port (docs/channel.md), runs programs for it, relays local programs' calls, and takes the
// machine through a freeze:
//
//   prepare: freeze user processes, send what is queued, answer `prepared`, then touch nothing but
//            the port until `resume` (or until kResumeTimeoutMs are over: the host died)
//   resume:  fresh random numbers and the right time, become who the host says (identity.h), answer
//            the calls that waited for the clone, thaw the processes, send `ready`
//
// Nothing of the user's runs between the two; in the parent only until the random numbers are
// fresh.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "guest/agent/calls.h"
#include "guest/agent/freezer.h"
#include "guest/agent/identity.h"
#include "guest/agent/port.h"
#include "guest/agent/streams.h"

namespace snow::guest {

inline constexpr int kFreezeTimeoutMs = 100;  // until processes stand still
inline constexpr int kFlushTimeoutMs = 1500;  // until the host took what was queued
inline constexpr int kResumeTimeoutMs = 30'000;
inline constexpr int64_t kBusyWaitUs = 100'000;  // for `resume`, in the guest's time

struct AgentOptions {
  std::string port;         // as Port::open
  std::string cgroup_root;  // as Freezer
  std::string socket = channel::kAgentSocket;
  IdentityPaths paths;
};

class Agent {
 public:
  explicit Agent(const AgentOptions& options);
  int run();  // until SIGTERM, or the end of a test's port

 private:
  void handle(const channel::Message& message);
  void say_hello();
  void prepare();
  void resume(std::string_view payload);
  void let_go();
  void wait_for_work(std::vector<channel::Message>& messages);
  void wait_for_resume(std::vector<channel::Message>& messages);
  void handle_signals();

  AgentOptions options_;
  Fd signals_;
  RandomPool random_pool_;
  Freezer freezer_;
  Port port_;
  Streams streams_;
  Calls calls_;
  bool frozen_ = false;
  int64_t held_since_us_ = 0;  // when the processes were told to stand still
  int64_t frozen_at_us_ = 0;   // when the host was told that they do
  int64_t got_at_us_ = 0;      // when something came from it after that
  int64_t held_us_ = 0;        // how long the processes stood still
  bool stop_ = false;
};

}  // namespace snow::guest
