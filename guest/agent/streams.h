// The streams that the host opens: programs (exec) and files (read, write). Each direction has
// credit: the agent reads a program's output only while the host lets it send, and lets the host
// send only what the program has taken. Single-threaded, never blocks but for file writes.
//
// After a freeze the parent's streams go on. In a clone they are cut off: the programs run on, what
// they print is read and thrown away, half-written files are removed.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "guest/agent/poller.h"
#include "guest/agent/port.h"
#include "guest/agent/program.h"

namespace snow::guest {

class Streams {
 public:
  Streams(Port& port, int exec_procs_fd) : port_(port), exec_procs_fd_(exec_procs_fd) {}
  ~Streams();
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  void handle(const channel::Message& message);  // those of a host's stream (even number)
  void add_to(Poller& poller);
  void finish_due();  // programs that ended, whose pipes stay open
  void reaped(pid_t pid, int status);
  void cut_off();  // all of them: a clone's, or when the host's daemon is another one
  void set_environment(Environment environment) { environment_ = std::move(environment); }

 private:
  struct Output {
    Fd fd;
    int number = 1;       // the stream's fd: 1 or 2
    int64_t budget = -1;  // after the program's end: so many bytes are still taken (-1: all)
  };
  struct Stream {
    enum class Kind { exec, read, write } kind = Kind::exec;
    bool orphan = false;  // of the parent, in a clone
    uint64_t send_credit = channel::kWindowBytes;
    Output outputs[2];  // of a terminal or a file: only the first
    // exec
    pid_t pid = -1;
    bool terminal = false;
    Fd input;
    std::string pending_input;
    bool input_ends = false;  // eof came
    uint32_t taken = 0;       // bytes taken and not yet given back as credit
    bool exited = false;
    int exit_code = 0;
    int64_t exited_at_us = 0;
    // write
    Fd file;
    std::string path, temporary;
    unsigned mode = 0644;
  };

  Stream* find(uint32_t number);
  void open_stream(uint32_t number, const channel::Fields& fields);
  bool open_exec(uint32_t number, const channel::Fields& fields, Stream& stream);
  bool open_read(uint32_t number, const channel::Fields& fields, Stream& stream);
  bool open_write(uint32_t number, const channel::Fields& fields, Stream& stream);
  void take_data(uint32_t number, Stream& stream, std::string_view payload);
  void end_input(uint32_t number, Stream& stream);
  void write_input(uint32_t number, Stream& stream);
  [[nodiscard]] int input_fd(const Stream& stream) const;
  void give_credit(uint32_t number, Stream& stream, size_t bytes, bool now);
  void read_output(uint32_t number, int which);
  void end_output(uint32_t number, Stream& stream, Output& output, int error);
  void finish_if_over(uint32_t number);
  void close_with(uint32_t number, std::string_view code, const std::string& message);
  void send_signal(Stream& stream, int signal_number);
  void drop(uint32_t number);  // kills, removes, says nothing

  Port& port_;
  int exec_procs_fd_;
  Environment environment_;  // --env of this machine
  std::map<uint32_t, Stream> streams_;
};

}  // namespace snow::guest
