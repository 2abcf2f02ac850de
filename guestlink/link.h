// The host's end of the guest channel of one VM: prepares the guest for a freeze, tells it who it
// is after the thaw, runs commands in it, and hands on what its programs ask for.
//
// Everything that comes from the guest is hostile input: bounded, checked, and able to do no more
// than this VM's own calls. Thread-safe. Callbacks run on the link's own reading thread and must
// not block: long work is handed on.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "guest/channel/message.h"

namespace snow {

// Who a thawed guest is; becomes the fields of `resume`.
struct Identity {
  // False: the same machine goes on, after a freeze that was given up or a pause; only its clock is
  // set.
  bool changed = true;
  std::string id = {};  // VM id
  std::string name = {};
  std::string ticket = {};
  unsigned index = 0;  // 0: the parent
  unsigned count = 0;  // clones of this fork
  uint32_t call = 0;   // GuestCall::number() of the call that asked for the freeze; 0: the host
  std::string parent = {};  // VM id
  unsigned generation = 0;
  std::string image = {};
  std::string uuid = {};
  std::string hostname = {};  // empty: unchanged
  bool new_machine_id = false;
  std::string mac = {};
  std::map<std::string, std::string> parameters = {};   // --param
  std::map<std::string, std::string> environment = {};  // --env
};

// What the agent did after a thaw; "ok", "none", or what failed. Times in microseconds.
struct ReadyReport {
  channel::Fields fields;
};

// A byte stream to a program or file in the guest. Thread-safe. Destroying it closes the stream and
// (exec) kills the program.
class GuestStream {
 public:
  virtual ~GuestStream() = default;
  // Blocks while the guest has given no credit. fd 0.
  virtual Result<void> write(std::string_view bytes) = 0;
  virtual Result<void> write_eof() = 0;
  struct Chunk {
    int fd = 1;         // 1 or 2
    std::string bytes;  // empty with `end` false never comes
    bool end = false;   // the stream is over: see outcome()
  };
  // The next bytes, at most `timeout_ms` (-1: for ever) later; nullopt: none in time.
  virtual std::optional<Chunk> read(int timeout_ms) = 0;
  // After the end: the exit code (exec; 128 + n for signal n), 0 (read, write), or the error.
  virtual Result<int> outcome() = 0;
  virtual void send_signal(int number) = 0;
  virtual void resize(unsigned rows, unsigned columns) = 0;
  // Ends the stream now, as the destructor does, from any thread: a read or write that waits in
  // another one returns. (Nothing to do for a stream on which nothing ever waits.)
  virtual void cancel() {}
};

struct ExecRequest {
  std::vector<std::string> argv = {};
  std::map<std::string, std::string> environment = {};
  std::string directory = {};  // empty: /
  std::string user = {};       // empty: root
  bool terminal = false;
  unsigned rows = 24, columns = 80;
};

// A program's call from the guest. At most one answer() or refuse(); destroyed without: nothing is
// sent (exit has no answer, and the agent itself answers a clone call at the resume). May be
// answered from any thread, also after a freeze: take_over() moves open calls.
class GuestCall {
 public:
  virtual ~GuestCall() = default;
  [[nodiscard]] virtual const channel::Fields& fields() const = 0;
  // The stream's number: names the call to the guest's agent, also in clones of that guest.
  [[nodiscard]] virtual uint32_t number() const = 0;
  [[nodiscard]] virtual const std::string& payload() const = 0;  // of exit; whole
  // `results` + code "ok"; `payload` follows in data messages, then eof.
  virtual void answer(channel::Fields results, std::string payload = {}) = 0;
  virtual void refuse(const Error& error) = 0;
  // The program that called is gone, or the VM is: an answer would reach nobody.
  [[nodiscard]] virtual bool gone() const = 0;
};

class GuestLink {
 public:
  struct Callbacks {
    std::function<void()> on_hello = {};                           // the agent is there
    std::function<void(std::shared_ptr<GuestCall>)> on_call = {};  // whole, with its payload
    std::function<void()> on_closed = {};                          // QEMU closed the socket
  };
  enum class Start {
    boot,  // asks for a hello until one comes
    thaw,  // the guest stands prepared: nothing is sent before resume(), or until it says hello
  };
  // Connects to QEMU's chardev socket (it listens). Code::unavailable: nobody listens.
  static Result<std::unique_ptr<GuestLink>> connect(const std::string& path, Callbacks callbacks,
                                                    Start start = Start::boot);
  // Streams end with an error. No callback begins after this; one that runs at this moment is not
  // waited for (so that a lock which callbacks take may be held here).
  virtual ~GuestLink() = default;
  // Waits for callbacks of links that were destroyed. Not from a callback, nor with a lock that
  // callbacks take.
  static void settle();

  [[nodiscard]] virtual bool has_agent() const = 0;         // a hello came
  virtual Result<void> wait_for_agent(int timeout_ms) = 0;  // Code::no_agent after that

  // The agent stops user processes and the channel; nothing is sent either way from its answer
  // until resume(). Result: its fields. Code::no_agent: no answer in time; then too resume() must
  // follow, with `changed` false, since the agent may stop the processes late.
  virtual Result<channel::Fields> prepare(int timeout_ms) = 0;
  // Code::invalid: the identity is too large to be sent (see check_parameters); Code::no_agent: no
  // answer in time.
  virtual Result<ReadyReport> resume(const Identity& identity, int timeout_ms) = 0;
  // Sends what resume() sends, and does not wait: the next resume() sends nothing and waits for
  // this one's answer.
  virtual Result<void> begin_resume(const Identity& identity) = 0;

  // After a thaw the guest's state goes on in a new process with a new socket: moves the open
  // streams and calls of `old` (same machine: clone 0) to this link. `old` is dead afterwards.
  // Called between prepare() on `old` and resume() on this.
  virtual void take_over(GuestLink& old) = 0;

  virtual Result<std::unique_ptr<GuestStream>> exec(const ExecRequest& request) = 0;
  virtual Result<std::unique_ptr<GuestStream>> read_file(const std::string& path) = 0;
  virtual Result<std::unique_ptr<GuestStream>> write_file(const std::string& path,
                                                          unsigned mode) = 0;

  [[nodiscard]] virtual uint64_t dropped_frames() const = 0;
};

// Whether parameters and environment of a request can be handed to a guest: keys that can be names,
// and sizes. Code::invalid says what is wrong. To be called before anything is stopped.
Result<void> check_parameters(const std::map<std::string, std::string>& parameters,
                              const std::map<std::string, std::string>& environment);

}  // namespace snow
