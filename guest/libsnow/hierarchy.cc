#include "guest/libsnow/hierarchy.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "guest/libsnow/snow.h"

namespace snow::guest {

namespace {

constexpr size_t kRecordHeader = 12;

struct Follower {
  pid_t pid = -1;
  int pipe = -1;  // read end
};
struct State {
  unsigned vcpus = 0;
  std::vector<Follower> followers;  // of the first
  int up = -1;                      // of another: write end
};
State state;  // set by spread(), which runs once in a process's clone

void put(std::string& out, uint32_t value) {
  for (int i = 0; i < 4; ++i) out.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

uint32_t get(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  return value;
}

std::string read_to_end(int fd) {
  std::string bytes;
  char buffer[65536];
  while (true) {
    const ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return bytes;
    bytes.append(buffer, static_cast<size_t>(got));
  }
}

}  // namespace

std::string encode_records(const std::vector<Record>& records) {
  std::string out;
  for (const Record& record : records) {
    put(out, record.how);
    put(out, static_cast<uint32_t>(record.status));
    put(out, static_cast<uint32_t>(record.payload.size()));
    out += record.payload;
  }
  return out;
}

std::optional<std::vector<Record>> decode_records(std::string_view bytes, size_t count) {
  std::vector<Record> records;
  while (!bytes.empty()) {
    if (bytes.size() < kRecordHeader || records.size() == count) return std::nullopt;
    Record record;
    record.how = get(bytes);
    record.status = static_cast<int>(get(bytes.substr(4)));
    const size_t size = get(bytes.substr(8));
    bytes.remove_prefix(kRecordHeader);
    if (size > bytes.size() || record.how > SNOW_RUNNING) return std::nullopt;
    record.payload = bytes.substr(0, size);
    bytes.remove_prefix(size);
    records.push_back(std::move(record));
  }
  if (records.size() != count) return std::nullopt;
  return records;
}

size_t record_limit(unsigned vcpus) { return SNOW_MAX_PAYLOAD / vcpus - 16; }

unsigned spread_over() { return state.vcpus; }
bool is_first() { return state.up < 0; }

int spread(unsigned vcpus) {
  state = State{};
  state.vcpus = vcpus;
  for (unsigned k = 1; k < vcpus; ++k) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return -1;
    const pid_t pid = fork();
    if (pid < 0) {
      close(ends[0]);
      close(ends[1]);
      return -1;
    }
    if (pid == 0) {
      close(ends[0]);
      for (const Follower& other : state.followers) close(other.pipe);
      state.followers.clear();
      state.up = ends[1];
      return static_cast<int>(k);
    }
    close(ends[1]);
    state.followers.push_back({pid, ends[0]});
  }
  return 0;
}

void end_follower(int status, std::string_view payload) {
  signal(SIGPIPE, SIG_IGN);
  const std::string bytes = encode_records({{SNOW_EXITED, status, std::string(payload)}});
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const ssize_t put_bytes = write(state.up, rest.data(), rest.size());
    if (put_bytes < 0 && errno == EINTR) continue;
    if (put_bytes < 0) break;
    rest.remove_prefix(static_cast<size_t>(put_bytes));
  }
  _exit(status & 0xff);
}

// A follower that ended without snow_exit left no record: its exit code is the status.
std::vector<Record> gather(int status, std::string_view payload) {
  std::vector<Record> records = {{SNOW_EXITED, status, std::string(payload)}};
  for (const Follower& follower : state.followers) {
    auto record = decode_records(read_to_end(follower.pipe), 1);
    close(follower.pipe);
    int exit_status = 0;
    pid_t got = 0;
    while ((got = waitpid(follower.pid, &exit_status, 0)) < 0 && errno == EINTR) {
    }
    if (record) {
      records.push_back(std::move(record->front()));
    } else if (got == follower.pid && WIFEXITED(exit_status)) {
      records.push_back({SNOW_EXITED, WEXITSTATUS(exit_status), ""});
    } else {
      records.push_back(
          {SNOW_CRASHED, WIFSIGNALED(exit_status) ? 128 + WTERMSIG(exit_status) : 0, ""});
    }
  }
  state.followers.clear();
  return records;
}

}  // namespace snow::guest
