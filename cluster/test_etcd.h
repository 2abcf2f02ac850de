// A real etcd for a test: one process on free ports of the loopback, its data in a temporary
// folder. It ends with this object, and also when the test is killed.
#pragma once

#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/test_folder.h"
#include "cluster/etcd_directory.h"

namespace snow {

class TestEtcd {
 public:
  static constexpr const char* kProgram = "/usr/bin/etcd";  // Debian's package etcd-server

  // PEM files in a folder: ca.pem, server.pem and server.key, client.pem and client.key.
  struct Tls {
    std::string folder;
  };

  // Throws when it does not come up: the test fails, and says why. `extra`: more arguments.
  explicit TestEtcd(std::vector<std::string> extra = {}, Tls tls = {})
      : extra_(std::move(extra)), tls_(std::move(tls)) {
    if (::access(kProgram, X_OK) != 0) {
      throw std::runtime_error("/usr/bin/etcd is missing: install etcd-server (packages.txt)");
    }
    // Somebody else may take a port between our finding it and etcd's binding it.
    for (int attempt = 0; attempt < 5; ++attempt) {
      client_port_ = free_port();
      peer_port_ = free_port();
      remove_all(folder_ / "data");
      if (start()) return;
    }
    throw std::runtime_error("etcd does not start:\n" +
                             read_file(folder_ / "log").value_or(std::string()));
  }
  TestEtcd(const TestEtcd&) = delete;
  TestEtcd& operator=(const TestEtcd&) = delete;
  ~TestEtcd() { kill(); }

  // With the data of before.
  bool start() {
    pid_ = ::fork();
    if (pid_ == 0) run();
    for (int i = 0; i < 600; ++i) {
      if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
        pid_ = -1;
        return false;
      }
      if (directory()->get("nothing")) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    kill();
    return false;
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  void signal(int number) const { ::kill(pid_, number); }

  [[nodiscard]] std::string endpoint() const {
    return (tls_.folder.empty() ? "http" : "https") + std::string("://127.0.0.1:") +
           std::to_string(client_port_);
  }
  [[nodiscard]] EtcdOptions options() const {
    EtcdOptions options;
    options.endpoints = {endpoint()};
    options.prefix = "/snow/test/";
    if (!tls_.folder.empty()) {
      options.ca_file = tls_.folder + "/ca.pem";
      options.cert_file = tls_.folder + "/client.pem";
      options.key_file = tls_.folder + "/client.key";
    }
    return options;
  }
  [[nodiscard]] std::unique_ptr<EtcdDirectory> directory() const {
    return std::move(EtcdDirectory::make(options()).value());
  }

  static uint16_t free_port() {
    const Fd fd(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size) < 0 ||
        ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) < 0) {
      throw std::runtime_error("no free port");
    }
    return ntohs(address.sin_port);
  }

 private:
  [[noreturn]] void run() const {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const std::string peer = "http://127.0.0.1:" + std::to_string(peer_port_);
    // Short elections, so that leases of one second are possible.
    std::vector<std::string> argv = {kProgram,
                                     "--name=test",
                                     "--data-dir=" + (folder_ / "data"),
                                     "--listen-client-urls=" + endpoint(),
                                     "--advertise-client-urls=" + endpoint(),
                                     "--listen-peer-urls=" + peer,
                                     "--initial-advertise-peer-urls=" + peer,
                                     "--initial-cluster=test=" + peer,
                                     "--heartbeat-interval=20",
                                     "--election-timeout=200",
                                     "--logger=zap",
                                     "--log-outputs=" + (folder_ / "log")};
    if (!tls_.folder.empty()) {
      argv.push_back("--cert-file=" + tls_.folder + "/server.pem");
      argv.push_back("--key-file=" + tls_.folder + "/server.key");
      argv.push_back("--trusted-ca-file=" + tls_.folder + "/ca.pem");
      argv.emplace_back("--client-cert-auth");
    }
    argv.insert(argv.end(), extra_.begin(), extra_.end());
    std::vector<char*> pointers;
    for (auto& argument : argv) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    ::execv(kProgram, pointers.data());
    ::_exit(127);
  }

  const std::vector<std::string> extra_;
  const Tls tls_;
  TestFolder folder_;
  uint16_t client_port_ = 0;
  uint16_t peer_port_ = 0;
  pid_t pid_ = -1;
};

}  // namespace snow
