#include "guest/shell/capture.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace snow::guest {

namespace {

constexpr size_t kHeader = 16;

void put(std::string& out, uint32_t value) {
  for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

uint32_t get(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  return value;
}

[[noreturn]] void run_child(const std::vector<std::string>& arguments, int out, int err) {
  const int null = open("/dev/null", O_RDONLY);
  dup2(null, 0);
  dup2(out, 1);
  dup2(err, 2);
  std::vector<char*> pointers;
  for (const std::string& text : arguments) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  execvp(pointers[0], pointers.data());
  const int error = errno;
  dprintf(2, "%s: %s\n", pointers[0], strerror(error));
  _exit(error == ENOENT ? 127 : 126);
}

// Reads both pipes to their ends.
void collect(int out, int err, size_t limit, Output& output) {
  pollfd fds[2] = {{out, POLLIN, 0}, {err, POLLIN, 0}};
  std::string* const texts[2] = {&output.out, &output.err};
  size_t dropped = 0;
  while (fds[0].fd >= 0 || fds[1].fd >= 0) {
    if (poll(fds, 2, -1) < 0) continue;
    for (int i = 0; i < 2; ++i) {
      if (fds[i].fd < 0 || fds[i].revents == 0) continue;
      char buffer[65536];
      const ssize_t got = read(fds[i].fd, buffer, sizeof buffer);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        close(fds[i].fd);
        fds[i].fd = -1;
        continue;
      }
      const size_t room = limit - output.out.size() - output.err.size();
      const size_t kept = std::min(room, static_cast<size_t>(got));
      texts[i]->append(buffer, kept);
      dropped += static_cast<size_t>(got) - kept;
    }
  }
  if (dropped > 0) output.err += "(" + std::to_string(dropped) + " more bytes were dropped)\n";
}

}  // namespace

Output run_captured(const std::vector<std::string>& arguments, size_t limit) {
  Output output;
  int out[2];
  int err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
    output.status = 126;
    output.err = std::string("pipe: ") + strerror(errno) + "\n";
    return output;
  }
  const pid_t pid = fork();
  if (pid == 0) run_child(arguments, out[1], err[1]);
  close(out[1]);
  close(err[1]);
  collect(out[0], err[0], limit, output);
  int status = 0;
  while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  output.status = pid < 0               ? 126
                  : WIFSIGNALED(status) ? 128 + WTERMSIG(status)
                                        : WEXITSTATUS(status);
  return output;
}

std::string encode_outputs(const std::vector<Output>& outputs) {
  std::string bytes;
  for (const Output& output : outputs) {
    put(bytes, output.number);
    put(bytes, static_cast<uint32_t>(output.status));
    put(bytes, static_cast<uint32_t>(output.out.size()));
    put(bytes, static_cast<uint32_t>(output.err.size()));
    bytes += output.out;
    bytes += output.err;
  }
  return bytes;
}

std::optional<std::vector<Output>> decode_outputs(std::string_view bytes) {
  std::vector<Output> outputs;
  while (!bytes.empty()) {
    if (bytes.size() < kHeader) return std::nullopt;
    Output output;
    output.number = get(bytes);
    output.status = static_cast<int>(get(bytes.substr(4)));
    const size_t out_size = get(bytes.substr(8));
    const size_t err_size = get(bytes.substr(12));
    bytes.remove_prefix(kHeader);
    if (out_size > bytes.size() || err_size > bytes.size() - out_size) return std::nullopt;
    output.out = bytes.substr(0, out_size);
    output.err = bytes.substr(out_size, err_size);
    bytes.remove_prefix(out_size + err_size);
    outputs.push_back(std::move(output));
  }
  return outputs;
}

}  // namespace snow::guest
