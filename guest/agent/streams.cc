#include "guest/agent/streams.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

namespace snow::guest {

using channel::field;
using channel::Fields;
using channel::number_field;
using channel::Type;

namespace {

constexpr size_t kChunk = 32 * 1024;         // of output in one message
constexpr uint32_t kCreditStep = 64 * 1024;  // credit is given back in such steps
constexpr int64_t kLingerUs = 1'000'000;     // pipes that stay open after a program's end
constexpr size_t kMaxStreams = 256;

uint32_t little_endian(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  return value;
}

std::string little_endian(uint32_t value) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
  return bytes;
}

}  // namespace

Streams::~Streams() {
  while (!streams_.empty()) drop(streams_.begin()->first);
}

Streams::Stream* Streams::find(uint32_t number) {
  const auto found = streams_.find(number);
  return found == streams_.end() ? nullptr : &found->second;
}

void Streams::handle(const channel::Message& message) {
  const uint32_t number = message.stream;
  if (message.type == Type::open) {
    const auto fields = channel::decode_fields(message.payload);
    if (!fields) return close_with(number, "invalid", "open: malformed fields");
    return open_stream(number, *fields);
  }
  Stream* stream = find(number);
  if (stream == nullptr || stream->orphan) return;
  switch (message.type) {
    case Type::data:
      return take_data(number, *stream, message.payload);
    case Type::eof:
      return end_input(number, *stream);
    case Type::credit:
      if (message.payload.size() == 4) stream->send_credit += little_endian(message.payload);
      return;
    case Type::closed:
      return drop(number);
    case Type::signal:
    case Type::resize: {
      const auto fields = channel::decode_fields(message.payload);
      if (!fields || stream->kind != Stream::Kind::exec) return;
      if (message.type == Type::signal) {
        return send_signal(*stream, static_cast<int>(number_field(*fields, "signal").value_or(0)));
      }
      winsize size{};
      size.ws_row = static_cast<uint16_t>(number_field(*fields, "rows").value_or(24));
      size.ws_col = static_cast<uint16_t>(number_field(*fields, "columns").value_or(80));
      if (stream->terminal) ioctl(stream->outputs[0].fd.get(), TIOCSWINSZ, &size);
      return;
    }
    default:
      return;
  }
}

// A number that is in use belonged to a host that has forgotten it: the old stream ends.
void Streams::open_stream(uint32_t number, const Fields& fields) {
  drop(number);
  if (streams_.size() >= kMaxStreams) {
    return close_with(number, "no_room", "the agent has too many streams open");
  }
  Stream stream;
  stream.outputs[1].number = 2;
  const std::string_view kind = field(fields, "kind");
  bool good = false;
  if (kind == "exec") {
    good = open_exec(number, fields, stream);
  } else if (kind == "read") {
    good = open_read(number, fields, stream);
  } else if (kind == "write") {
    good = open_write(number, fields, stream);
  } else {
    close_with(number, "invalid", "open: unknown kind '" + std::string(kind) + "'");
  }
  if (good) streams_.emplace(number, std::move(stream));
}

bool Streams::open_exec(uint32_t number, const Fields& fields, Stream& stream) {
  Program program;
  if (const auto error = start_program(fields, environment_, exec_procs_fd_, program)) {
    close_with(number, error->code, error->message);
    return false;
  }
  stream.pid = program.pid;
  stream.terminal = program.terminal;
  stream.input = std::move(program.in);
  stream.outputs[0].fd = std::move(program.out);
  stream.outputs[1].fd = std::move(program.err);
  return true;
}

bool Streams::open_read(uint32_t number, const Fields& fields, Stream& stream) {
  const std::string path(field(fields, "path"));
  stream.kind = Stream::Kind::read;
  Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  struct stat status {};
  int error = !fd || fstat(fd.get(), &status) != 0 ? errno : 0;
  if (error == 0 && S_ISDIR(status.st_mode)) error = EISDIR;
  if (error != 0) {
    close_with(number, error_code(error), "guest file '" + path + "': " + error_text(error));
    return false;
  }
  stream.path = path;
  stream.outputs[0].fd = std::move(fd);
  return true;
}

bool Streams::open_write(uint32_t number, const Fields& fields, Stream& stream) {
  stream.kind = Stream::Kind::write;
  stream.path = field(fields, "path");
  const std::string mode(field(fields, "mode"));
  if (!mode.empty()) stream.mode = static_cast<unsigned>(strtoul(mode.c_str(), nullptr, 8)) & 07777;
  // The file that a link names is replaced, not the link.
  if (char* real = realpath(stream.path.c_str(), nullptr)) {
    stream.path = real;
    free(real);
  }
  struct stat status {};
  int error = 0;
  if (stat(stream.path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    error = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
  } else {
    stream.temporary = stream.path + ".snow-XXXXXX";
    stream.file = Fd(mkostemp(stream.temporary.data(), O_CLOEXEC));
    if (!stream.file) error = errno;
  }
  if (error == 0) return true;
  close_with(number, error_code(error), "guest file '" + stream.path + "': " + error_text(error));
  return false;
}

void Streams::take_data(uint32_t number, Stream& stream, std::string_view payload) {
  if (payload.empty() || payload[0] != 0 || stream.kind == Stream::Kind::read) return;
  payload.remove_prefix(1);
  if (stream.kind == Stream::Kind::exec) {
    if (stream.pending_input.size() + payload.size() > channel::kWindowBytes + kCreditStep) {
      close_with(number, "invalid", "more data than there was credit for");
      return drop(number);
    }
    stream.pending_input += payload;
    return write_input(number, stream);
  }
  while (!payload.empty()) {
    const ssize_t put = write(stream.file.get(), payload.data(), payload.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) {
      const int error = errno;
      close_with(number, error_code(error),
                 "guest file '" + stream.path + "': " + error_text(error));
      return drop(number);
    }
    payload.remove_prefix(static_cast<size_t>(put));
    give_credit(number, stream, static_cast<size_t>(put), false);
  }
}

void Streams::end_input(uint32_t number, Stream& stream) {
  stream.input_ends = true;
  if (stream.kind == Stream::Kind::exec) return write_input(number, stream);
  if (stream.kind != Stream::Kind::write) return;
  if (fchmod(stream.file.get(), stream.mode) != 0 ||
      rename(stream.temporary.c_str(), stream.path.c_str()) != 0) {
    const int error = errno;
    close_with(number, error_code(error), "guest file '" + stream.path + "': " + error_text(error));
  } else {
    stream.temporary.clear();
    close_with(number, "ok", "");
  }
  drop(number);
}

int Streams::input_fd(const Stream& stream) const {
  return stream.terminal ? stream.outputs[0].fd.get() : stream.input.get();
}

// A program that has closed its input gets no more of it; the host may send on all the same.
void Streams::write_input(uint32_t number, Stream& stream) {
  while (!stream.pending_input.empty()) {
    const int fd = input_fd(stream);
    const ssize_t put =
        fd < 0 ? -1 : write(fd, stream.pending_input.data(), stream.pending_input.size());
    if (put < 0 && fd >= 0 && errno == EINTR) continue;
    if (put < 0 && fd >= 0 && errno == EAGAIN) break;
    if (put < 0) stream.input.reset();
    const size_t gone = put < 0 ? stream.pending_input.size() : static_cast<size_t>(put);
    stream.pending_input.erase(0, gone);
    give_credit(number, stream, gone, stream.pending_input.empty());
  }
  if (!stream.pending_input.empty() || !stream.input_ends) return;
  if (stream.terminal && stream.outputs[0].fd) {
    (void)!write(stream.outputs[0].fd.get(), "\4", 1);  // end of file, as typed
    stream.input_ends = false;
  }
  stream.input.reset();
}

void Streams::give_credit(uint32_t number, Stream& stream, size_t bytes, bool now) {
  stream.taken += static_cast<uint32_t>(bytes);
  if (stream.orphan || stream.taken == 0 || (!now && stream.taken < kCreditStep)) return;
  port_.send(Type::credit, number, little_endian(stream.taken));
  stream.taken = 0;
}

void Streams::add_to(Poller& poller) {
  for (auto& [number, stream] : streams_) {
    const uint32_t n = number;
    const bool may_read = stream.orphan || (stream.send_credit > 0 && !port_.full());
    for (int which = 0; which < 2; ++which) {
      if (!stream.outputs[which].fd || !may_read) continue;
      poller.add(stream.outputs[which].fd.get(), POLLIN,
                 [this, n, which](short) { read_output(n, which); });
    }
    if (!stream.pending_input.empty() && input_fd(stream) >= 0) {
      poller.add(input_fd(stream), POLLOUT, [this, n](short) {
        if (Stream* found = find(n)) write_input(n, *found);
      });
    }
    if (stream.exited && stream.outputs[0].budget < 0 && stream.outputs[1].budget < 0) {
      const int64_t left_us = stream.exited_at_us + kLingerUs - monotonic_us();
      poller.limit(left_us <= 0 ? 0 : static_cast<int>(left_us / 1000 + 1));
    }
  }
}

void Streams::read_output(uint32_t number, int which) {
  Stream* stream = find(number);
  if (stream == nullptr || !stream->outputs[which].fd) return;
  Output& output = stream->outputs[which];
  size_t want = kChunk;
  if (!stream->orphan) want = std::min<uint64_t>(want, stream->send_credit);
  if (output.budget >= 0) want = std::min<size_t>(want, static_cast<size_t>(output.budget));
  if (want == 0) return;
  std::string payload(1 + want, static_cast<char>(output.number));
  const ssize_t got = read(output.fd.get(), payload.data() + 1, want);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return end_output(number, *stream, output, got < 0 ? errno : 0);
  if (!stream->orphan) {
    payload.resize(1 + static_cast<size_t>(got));
    stream->send_credit -= static_cast<uint64_t>(got);
    port_.send(Type::data, number, std::move(payload));
  }
  if (output.budget >= 0) {
    output.budget -= got;
    if (output.budget == 0) end_output(number, *stream, output, 0);
  }
}

// A terminal's end is EIO.
void Streams::end_output(uint32_t number, Stream& stream, Output& output, int error) {
  output.fd.reset();
  if (stream.kind == Stream::Kind::read) {
    if (error == 0) {
      close_with(number, "ok", "");
    } else {
      close_with(number, error_code(error),
                 "guest file '" + stream.path + "': " + error_text(error));
    }
    return drop(number);
  }
  if (!stream.orphan) port_.send(Type::eof, number, std::string(1, char(output.number)));
  finish_if_over(number);
}

void Streams::reaped(pid_t pid, int status) {
  for (auto& [number, stream] : streams_) {
    if (stream.pid != pid || stream.exited) continue;
    stream.exited = true;
    stream.exited_at_us = monotonic_us();
    stream.exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return finish_if_over(number);
  }
}

// A second after a program's end, descendants that hold its pipes no longer count: what is in the
// pipes now is still sent, then they are closed.
void Streams::finish_due() {
  const int64_t now = monotonic_us();
  std::vector<std::pair<uint32_t, int>> over;
  for (auto& [number, stream] : streams_) {
    if (!stream.exited || now < stream.exited_at_us + kLingerUs) continue;
    for (int which = 0; which < 2; ++which) {
      Output& output = stream.outputs[which];
      if (!output.fd || output.budget >= 0) continue;
      int bytes = 0;
      ioctl(output.fd.get(), FIONREAD, &bytes);
      output.budget = bytes;
      if (bytes == 0) over.emplace_back(number, which);
    }
  }
  for (const auto& [number, which] : over) {
    if (Stream* stream = find(number)) end_output(number, *stream, stream->outputs[which], 0);
  }
}

void Streams::finish_if_over(uint32_t number) {
  Stream* stream = find(number);
  if (stream == nullptr || !stream->exited || stream->outputs[0].fd || stream->outputs[1].fd)
    return;
  if (!stream->orphan) {
    port_.send(Type::closed, number,
               Fields{{"code", "ok"}, {"exit", std::to_string(stream->exit_code)}});
  }
  streams_.erase(number);
}

void Streams::close_with(uint32_t number, std::string_view code, const std::string& message) {
  port_.send(Type::closed, number, Fields{{"code", std::string(code)}, {"message", message}});
}

void Streams::send_signal(Stream& stream, int signal_number) {
  if (signal_number <= 0 || signal_number >= NSIG || stream.exited) return;
  kill(-stream.pid, signal_number);
  if (!stream.terminal) return;
  pid_t foreground = 0;  // a shell runs its commands in groups of their own
  if (ioctl(stream.outputs[0].fd.get(), TIOCGPGRP, &foreground) == 0 && foreground > 1 &&
      foreground != stream.pid) {
    kill(-foreground, signal_number);
  }
}

void Streams::drop(uint32_t number) {
  const auto found = streams_.find(number);
  if (found == streams_.end()) return;
  Stream& stream = found->second;
  if (stream.pid > 0 && !stream.exited) kill(-stream.pid, SIGKILL);
  if (!stream.temporary.empty()) unlink(stream.temporary.c_str());
  streams_.erase(found);
}

// Orphans get numbers that no host uses (hosts' are even), so that the clone's host can begin anew.
void Streams::cut_off() {
  std::map<uint32_t, Stream> orphans;
  uint32_t next = 1;
  while (!streams_.empty()) {
    const auto first = streams_.begin();
    Stream& stream = first->second;
    if (stream.kind != Stream::Kind::exec) {
      drop(first->first);
      continue;
    }
    stream.orphan = true;
    orphans.emplace(next, std::move(stream));
    next += 2;
    streams_.erase(first);
  }
  streams_ = std::move(orphans);
}

}  // namespace snow::guest
