// For tests: an HTTP server that gives the answers it was told, one for each request, and then
// none: it accepts and stays silent.
#pragma once

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"

namespace snow {

class TestHttp {
 public:
  struct Answer {
    int status = 200;
    std::string body;
  };

  explicit TestHttp(std::deque<Answer> answers) : answers_(std::move(answers)) {
    listener_ = Fd(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size) < 0 ||
        ::listen(listener_.get(), 16) < 0 ||
        ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) < 0) {
      std::abort();
    }
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  TestHttp(const TestHttp&) = delete;
  TestHttp& operator=(const TestHttp&) = delete;
  ~TestHttp() {
    stop_ = true;
    thread_.join();
  }
  [[nodiscard]] std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(port_); }
  [[nodiscard]] int requests() const { return requests_; }

 private:
  void run() {
    while (!stop_) {
      pollfd ready{listener_.get(), POLLIN, 0};
      if (::poll(&ready, 1, 10) <= 0) continue;
      Fd connection(::accept(listener_.get(), nullptr, nullptr));
      if (!connection) continue;
      if (!read_request(connection.get())) continue;
      ++requests_;
      if (answers_.empty()) {
        silent_.push_back(std::move(connection));
        continue;
      }
      const Answer answer = answers_.front();
      answers_.pop_front();
      const std::string text =
          "HTTP/1.1 " + std::to_string(answer.status) +
          " Said\r\nConnection: close\r\nContent-Length: " + std::to_string(answer.body.size()) +
          "\r\n\r\n" + answer.body;
      (void)write_all(connection.get(), std::as_bytes(std::span(text)), "test");
    }
  }
  // Headers and as much of a body as they announce.
  static bool read_request(int fd) {
    std::string text;
    char piece[4096];
    for (;;) {
      const auto end = text.find("\r\n\r\n");
      if (end != std::string::npos) {
        const auto length = text.find("Content-Length: ");
        const size_t body = length < end ? std::stoul(text.substr(length + 16)) : 0;
        if (text.size() >= end + 4 + body) return true;
      }
      const ssize_t got = ::read(fd, piece, sizeof piece);
      if (got <= 0) return false;
      text.append(piece, static_cast<size_t>(got));
    }
  }

  std::deque<Answer> answers_;
  Fd listener_;
  uint16_t port_ = 0;
  std::atomic<bool> stop_{false};
  std::atomic<int> requests_{0};
  std::vector<Fd> silent_;
  std::thread thread_;
};

}  // namespace snow
