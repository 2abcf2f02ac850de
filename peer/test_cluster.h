// For tests: clusters in temporary folders, and servers and pools of their hosts over loopback.
#pragma once

#include <dirent.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "peer/authority.h"
#include "peer/calls.h"
#include "peer/certificate.h"
#include "peer/pool.h"
#include "peer/server.h"

namespace snow::peer {

inline constexpr int kTestMs = 60'000;  // generous: reached only when something hangs
inline constexpr uint8_t kTestType = kFirstFree + 7;

class TestFolder {
 public:
  TestFolder() {
    std::string name = std::filesystem::temp_directory_path() / "snow-peer-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  TestFolder(const TestFolder&) = delete;
  ~TestFolder() { remove_all(path_); }
  [[nodiscard]] std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

template <class T>
T need(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  if constexpr (!std::is_void_v<T>) return *std::move(result);
}

// A CA and hosts with certificates of it.
class TestCluster {
 public:
  TestCluster() { need(make_authority(folder(), "test")); }

  [[nodiscard]] std::string folder() const { return folder_ / "authority"; }
  // A new member's folder.
  std::string add_host(const std::string& host) {
    const std::string own = folder_ / host;
    const std::string request = need(make_request(own, host));
    need(write_file(own + "/host.pem", need(sign_request(folder(), host, request))));
    need(write_file(own + "/ca.pem", need(read_file(folder() + "/ca.pem"))));
    return own;
  }
  std::shared_ptr<const Credentials> credentials(const std::string& host) {
    return need(Credentials::load(identity_in(add_host(host), host)));
  }

 private:
  TestFolder folder_;
};

inline std::shared_ptr<const Credentials> plain_credentials(const std::string& host) {
  Identity identity;
  identity.host = host;
  identity.plain = true;
  return need(Credentials::load(identity));
}

inline const std::string kHostA = "haaaaaaaaaaaa";
inline const std::string kHostB = "hbbbbbbbbbbbb";

inline std::vector<std::byte> some_bytes(size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 131 + i / 251);
  return bytes;
}

inline size_t open_descriptors() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    (void)entry;
    ++count;
  }
  return count;
}

// Sends every frame back until the connection ends.
inline void echo(Connection& connection) {
  std::vector<std::byte> payload;
  while (true) {
    const auto type = connection.receive_into(payload, kForever);
    if (!type || !connection.send(*type, payload, kTestMs)) return;
  }
}

// Host A serves "echo", host B has a pool that finds it.
struct TestPair {
  explicit TestPair(bool plain, Server::Options server_options = {},
                    Pool::Options pool_options = {})
      : a(plain ? plain_credentials(kHostA) : cluster.credentials(kHostA)),
        b(plain ? plain_credentials(kHostB) : cluster.credentials(kHostB)),
        server(a, std::move(server_options)),
        pool(
            b, [this](const std::string&) { return Result<Address>(server.address()); },
            pool_options) {
    server.add("echo", echo);
  }
  void start() { need(server.start({"127.0.0.1", 0})); }

  TestCluster cluster;
  std::shared_ptr<const Credentials> a, b;
  Server server;
  Pool pool;
};

}  // namespace snow::peer
