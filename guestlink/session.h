// What the host and one guest have going on with each other: output queue, streams, calls, and
// where a freeze stands. No I/O but the writing to its wire, so that tests and the fuzzer can drive
// it.
//
// Outlives a fork: the parent's session moves to the new QEMU's wire, with its streams and calls.
// Memory is bounded whatever the guest sends: kStreams streams with a window each, kCalls calls
// with kCallBytes of payload in all, kQueueBytes of output. Thread-safe: one mutex guards all of
// it. Callbacks are called without it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "guest/channel/message.h"
#include "guestlink/link.h"
#include "guestlink/loop.h"

namespace snow {

// A stream that the host opened. Guarded by its session's mutex.
struct StreamState {
  // Bytes of one fd, in the order in which they came.
  struct Run {
    uint32_t bytes : 30;
    uint32_t fd : 2;
  };
  uint32_t number = 0;
  std::string what;  // for messages: "command 'ls'"
  bool is_exec = false;
  std::string received;  // from `taken` on: not read yet
  size_t taken = 0;
  std::deque<Run> runs;
  uint64_t allowance = channel::kWindowBytes;    // the guest may send so much more
  uint64_t owed = 0;                             // read, and not given back as credit yet
  uint64_t send_credit = channel::kWindowBytes;  // we may
  bool sent_eof = false;
  std::optional<Result<int>> outcome;  // it is over
};

// A call that a program in the guest made. Guarded by its session's mutex.
struct CallState {
  uint32_t number = 0;
  channel::Fields fields;
  std::string payload;     // of exit; constant once `delivered`
  bool delivered = false;  // to on_call
  bool gone = false;
  uint64_t allowance = channel::kWindowBytes;
  uint64_t owed = 0;
  std::string out;  // the answer's payload, from out_at on
  size_t out_at = 0;
  bool answered = false;
  uint64_t send_credit = channel::kWindowBytes;
};

class LinkSession : public std::enable_shared_from_this<LinkSession> {
 public:
  static constexpr size_t kStreams = 64;
  static constexpr size_t kCalls = 64;
  static constexpr size_t kCallBytes = channel::kMaxResultBytes + (size_t{1} << 20);
  static constexpr size_t kQueueBytes = size_t{4} << 20;      // of output; more is dropped
  static constexpr size_t kQueueDataBytes = size_t{1} << 19;  // writers of data wait above this
  static constexpr size_t kChunkBytes = 32 * 1024;            // of data in one message
  static constexpr uint64_t kCreditStep = 64 * 1024;          // credit is given back in such steps

  struct Caller {
    GuestLink::Callbacks callbacks;
    std::atomic<bool> dead = false;
  };

  LinkSession(std::shared_ptr<Caller> caller, GuestLink::Start start)
      : caller_(std::move(caller)), held_(start == GuestLink::Start::thaw), thaw_(held_) {}

  // From link.cc.
  void attach(std::shared_ptr<Wire> wire);
  void shut_down();  // streams end
  void take_wire(LinkSession& from);
  bool has_agent();
  Result<void> wait_for_agent(int timeout_ms);
  Result<channel::Fields> prepare(int timeout_ms);
  void begin_resume(const std::string& payload);
  bool resume_begun();
  Result<ReadyReport> finish_resume(int timeout_ms);
  Result<std::shared_ptr<StreamState>> open(const channel::Fields& fields, std::string what);
  uint64_t dropped();

  // From the loop. False: `wire` belongs to another session by now.
  struct Received {
    std::vector<channel::Message> messages;
    uint64_t dropped = 0;
    uint64_t foreign_versions = 0;
  };
  bool on_received(const Wire& wire, const Received& received);
  bool on_closed(const Wire& wire);
  void on_writable(const Wire& wire);
  void on_tick();  // about every second
  void receive(const Received& received);

  // From streams (stream.cc).
  Result<void> write(StreamState& stream, std::string_view bytes);
  Result<void> write_eof(StreamState& stream);
  std::optional<GuestStream::Chunk> read(StreamState& stream, int timeout_ms);
  Result<int> outcome(StreamState& stream);
  void tell(StreamState& stream, channel::Type type, const channel::Fields& fields);
  void close(StreamState& stream);

  // From calls (call.cc).
  void answer(CallState& call, const channel::Fields& fields, std::string payload);
  void forget(CallState& call);
  bool gone(CallState& call);

 private:
  using Lock = std::unique_lock<std::mutex>;
  // What is to be called when the mutex is free.
  struct Due {
    bool hello = false;
    bool closed = false;
    std::vector<std::shared_ptr<GuestCall>> calls;
  };
  void run(const std::shared_ptr<Caller>& caller, Due& due);

  // All of these want the mutex held.
  template <class Condition>
  bool wait(Lock& lock, int timeout_ms, Condition condition);
  bool send(channel::Type type, uint32_t stream, std::string payload);
  bool send(channel::Type type, uint32_t stream, const channel::Fields& fields);
  void push(std::string frame);
  void flush();
  bool pump();
  bool pump_credit(uint32_t number, uint64_t& owed, uint64_t& allowance);
  bool pump_answer(CallState& call);
  void release(std::string first);
  void drop(CallState& call);
  void erase(CallState& call);
  void end(StreamState& stream, Result<int> outcome);
  void end_all(const Error& error);
  Error no_agent(std::string_view what) const;

  void handle(const channel::Message& message, Due& due);
  void handle_hello(const channel::Message& message, Due& due);
  void handle_answer(const channel::Message& message);
  void handle_stream(const channel::Message& message);
  void handle_stream_data(StreamState& stream, std::string_view payload);
  void handle_stream_closed(StreamState& stream, const channel::Message& message);
  void begin_call(const channel::Message& message, Due& due);
  void handle_call(const channel::Message& message, Due& due);
  void handle_call_data(CallState& call, std::string_view payload);
  void deliver(const std::shared_ptr<CallState>& call, Due& due);
  void refuse(uint32_t number, Code code, const std::string& message);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Caller> caller_;
  std::shared_ptr<Wire> wire_;
  bool closed_ = false;

  // Output. A new wire gets a zero byte first, which ends what the guest may have of a frame.
  bool fresh_wire_ = true;
  std::deque<std::string> out_;
  size_t out_sent_ = 0;               // of the first
  std::deque<std::string> deferred_;  // while held
  size_t queued_bytes_ = 0;           // in both

  // The agent, and the freeze.
  bool hello_ = false;
  std::string boot_;             // what the last hello called it
  std::string complaint_;        // a version that is not ours, in words
  bool logged_refusal_ = false;  // once: a guest shall not fill the host's log
  unsigned asks_ = 0;
  unsigned ticks_to_ask_ = 1;
  bool held_;              // nothing is sent, until resume
  bool thaw_;              // since the start, and the guest has said nothing yet
  unsigned prepares_ = 0;  // sent and not answered
  unsigned resumes_ = 0;
  bool resume_begun_ = false;  // and nobody has waited for the answer yet
  std::optional<channel::Fields> prepared_;
  std::optional<channel::Fields> ready_;

  uint32_t next_stream_ = 0;
  std::map<uint32_t, std::shared_ptr<StreamState>> streams_;
  std::map<uint32_t, std::shared_ptr<CallState>> calls_;
  size_t call_bytes_ = 0;
  uint64_t dropped_ = 0;
};

// In stream.cc and call.cc.
std::unique_ptr<GuestStream> make_stream(std::shared_ptr<LinkSession> session,
                                         std::shared_ptr<StreamState> state);
std::shared_ptr<GuestCall> make_call(std::shared_ptr<LinkSession> session,
                                     std::shared_ptr<CallState> state);

}  // namespace snow
