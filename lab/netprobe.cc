// netprobe: what a link gives to a program that does nothing but TCP. The measure for everything
// that the lab's benches compare with it, and for the lab's own test.
//
//   netprobe serve ADDRESS PORT [FILE]              answers the two below until it is killed, with
//   the
//                                                   content of FILE if there is one
//   netprobe rtt ADDRESS PORT COUNT [REPLY_BYTES]   COUNT requests of 32 bytes, one after the
//   other, each
//                                                   answered with REPLY_BYTES (4096)
//   netprobe stream ADDRESS PORT BYTES [FILE]       receives BYTES as fast as they come, into FILE
//
// Prints one line of JSON. A request is 32 bytes: how many bytes to send, the rest is padding. One
// thread for each connection. Exit code 0, or 1 with a message.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr size_t kChunkBytes = 256 << 10;
constexpr size_t kWarmUp = 100;
using Clock = std::chrono::steady_clock;
using Request = std::array<char, 32>;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "netprobe: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(1);
}

sockaddr_in address_of(const char* ip, const char* port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::strtoul(port, nullptr, 10)));
  errno = EINVAL;
  if (::inet_pton(AF_INET, ip, &address.sin_addr) != 1) fail(ip);
  return address;
}

int make_socket() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  return fd;
}

void no_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

bool receive_all(int fd, char* data, size_t size) {
  while (size > 0) {
    const ssize_t got = ::recv(fd, data, size, 0);
    if (got <= 0) return false;
    data += got;
    size -= static_cast<size_t>(got);
  }
  return true;
}

bool send_all(int fd, const char* data, size_t size) {
  while (size > 0) {
    const ssize_t sent = ::send(fd, data, size, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    data += sent;
    size -= static_cast<size_t>(sent);
  }
  return true;
}

Request request_for(uint64_t bytes) {
  Request request{};
  std::memcpy(request.data(), &bytes, sizeof bytes);
  return request;
}

bool send_file(int fd, int file, uint64_t size) {
  off_t offset = 0;
  while (size > 0) {
    const ssize_t sent = ::sendfile(fd, file, &offset, std::min<uint64_t>(size, kChunkBytes));
    if (sent <= 0) return false;
    size -= static_cast<uint64_t>(sent);
  }
  return true;
}

// file: -1 for no file.
void answer(int fd, int file) {
  no_delay(fd);
  const std::vector<char> data(kChunkBytes, 'x');
  Request request{};
  while (receive_all(fd, request.data(), request.size())) {
    uint64_t left = 0;
    std::memcpy(&left, request.data(), sizeof left);
    if (file >= 0 && send_file(fd, file, left)) continue;
    if (file >= 0) break;
    while (left > 0) {
      const size_t now = std::min<uint64_t>(left, data.size());
      if (!send_all(fd, data.data(), now)) break;
      left -= now;
    }
    if (left > 0) break;
  }
  ::close(fd);
}

int open_file(const char* path, int flags) {
  if (path == nullptr) return -1;
  const int file = ::open(path, flags | O_CLOEXEC, 0644);
  if (file < 0) fail(path);
  return file;
}

int serve(const sockaddr_in& address, const char* path) {
  const int file = open_file(path, O_RDONLY);
  const int listener = make_socket();
  const int on = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    fail("bind");
  }
  if (::listen(listener, 64) < 0) fail("listen");
  std::puts("{\"serving\":true}");
  std::fflush(stdout);
  while (true) {
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) fail("accept");
    std::thread(answer, fd, file).detach();
  }
}

int connect_to(const sockaddr_in& address) {
  const int fd = make_socket();
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    fail("connect");
  }
  no_delay(fd);
  return fd;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int measure_rtt(const sockaddr_in& address, size_t count, size_t reply_bytes) {
  const int fd = connect_to(address);
  const Request request = request_for(reply_bytes);
  std::vector<char> reply(reply_bytes);
  std::vector<double> us;
  us.reserve(count);
  for (size_t i = 0; i < count + kWarmUp; ++i) {
    const auto start = Clock::now();
    if (!send_all(fd, request.data(), request.size()) ||
        !receive_all(fd, reply.data(), reply.size())) {
      fail("the connection ended");
    }
    if (i >= kWarmUp) us.push_back(seconds_since(start) * 1e6);
  }
  ::close(fd);
  std::sort(us.begin(), us.end());
  const auto at = [&](size_t percent) { return us[(us.size() - 1) * percent / 100]; };
  std::printf("{\"count\":%zu,\"min_us\":%.2f,\"p50_us\":%.2f,\"p99_us\":%.2f,\"max_us\":%.2f}\n",
              us.size(), us.front(), at(50), at(99), us.back());
  return 0;
}

int measure_stream(const sockaddr_in& address, uint64_t bytes, const char* path) {
  const int file = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
  const int fd = connect_to(address);
  const Request request = request_for(bytes);
  std::vector<char> chunk(kChunkBytes);
  const auto start = Clock::now();
  if (!send_all(fd, request.data(), request.size())) fail("send");
  uint64_t left = bytes;
  while (left > 0) {
    const ssize_t got = ::recv(fd, chunk.data(), std::min<uint64_t>(left, chunk.size()), 0);
    if (got <= 0) fail("the connection ended");
    if (file >= 0 && ::write(file, chunk.data(), static_cast<size_t>(got)) != got) fail(path);
    left -= static_cast<uint64_t>(got);
  }
  const double seconds = seconds_since(start);
  ::close(fd);
  std::printf("{\"bytes\":%llu,\"seconds\":%.6f,\"mbit_s\":%.1f}\n",
              static_cast<unsigned long long>(bytes), seconds,
              static_cast<double>(bytes) * 8 / seconds / 1e6);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  const std::string mode = argc > 3 ? argv[1] : "";
  const auto number = [&](int at, uint64_t otherwise) {
    return at < argc ? std::strtoull(argv[at], nullptr, 10) : otherwise;
  };
  if (mode == "serve") return serve(address_of(argv[2], argv[3]), argc > 4 ? argv[4] : nullptr);
  if (mode == "rtt" && number(4, 0) > 0) {
    return measure_rtt(address_of(argv[2], argv[3]), number(4, 0), number(5, 4096));
  }
  if (mode == "stream" && number(4, 0) > 0) {
    return measure_stream(address_of(argv[2], argv[3]), number(4, 0), argc > 5 ? argv[5] : nullptr);
  }
  std::fputs("usage: netprobe serve|rtt|stream ADDRESS PORT [COUNT|BYTES] [REPLY_BYTES|FILE]\n",
             stderr);
  return 2;
}
