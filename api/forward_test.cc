// Daemons that answer for each other: three of them in one process, each with a Host of the tests,
// a real server, and real connections between them.
#include "api/forward.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <chrono>
#include <map>
#include <thread>

#include "api/forward_message.h"
#include "api/frame.h"
#include "api/server.h"
#include "api/test_host.h"
#include "peer/test_cluster.h"

namespace snow::forward {
namespace {

using nlohmann::json;

class TestNeighbours : public Neighbours {
 public:
  explicit TestNeighbours(const std::string& self)
      : self_(self),
        pool_(peer::plain_credentials(self),
              [this](const std::string& host) -> Result<peer::Address> {
                const std::lock_guard lock(mutex_);
                return addresses_.at(host);
              }) {}
  [[nodiscard]] std::string self() const override { return self_; }
  [[nodiscard]] std::vector<std::string> live() const override {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> ids;
    for (const auto& [id, name] : names_) ids.push_back(id);
    return ids;
  }
  [[nodiscard]] std::string name_of(const std::string& host) const override {
    const std::lock_guard lock(mutex_);
    const auto at = names_.find(host);
    return at == names_.end() ? host : at->second;
  }
  [[nodiscard]] peer::Pool& pool() override { return pool_; }

  void add(const std::string& id, const std::string& name, const peer::Address& address) {
    const std::lock_guard lock(mutex_);
    names_[id] = name;
    addresses_[id] = address;
  }
  void lose(const std::string& id) {
    const std::lock_guard lock(mutex_);
    names_.erase(id);
  }

 private:
  const std::string self_;
  mutable std::mutex mutex_;
  std::map<std::string, std::string> names_;
  std::map<std::string, peer::Address> addresses_;
  peer::Pool pool_;
};

// One daemon.
struct Daemon {
  Daemon(const std::string& folder, const std::string& name)
      : id("h00000000000" + name), neighbours(std::make_shared<TestNeighbours>(id)) {
    host.host_name = name;
    host.host_id = id;
    host.in_cluster = true;
    host.vm_name = "web-of-" + name;
    host.vm_id = name + "0c0ffee";
    host.vm_ticket = "t" + name;
    host.others = neighbours;
    server = peer::need(Server::start(host, {folder + "/" + name + ".sock", "", 64}));
    peers = std::make_unique<peer::Server>(peer::plain_credentials(id));
    peers->add(kService, [this](peer::Connection& connection) {
      std::function<void(peer::Connection&)> session;
      {
        const std::lock_guard lock(host.mutex);
        session = host.api_session;
      }
      if (session) session(connection);
    });
    peer::need(peers->start({"127.0.0.1", 0}));
  }
  ~Daemon() {
    server.reset();
    peers->stop();
  }
  void knows(const Daemon& other) {
    neighbours->add(other.id, other.host.host_name, other.peers->address());
  }

  const std::string id;
  std::shared_ptr<TestNeighbours> neighbours;
  TestHost host;
  std::unique_ptr<Server> server;
  std::unique_ptr<peer::Server> peers;
};

class ForwardTest : public ::testing::Test {
 protected:
  ForwardTest() {
    for (Daemon* one : {&a_, &b_, &c_}) {
      for (Daemon* other : {&a_, &b_, &c_}) {
        if (one != other) one->knows(*other);
      }
    }
  }
  void TearDown() override {
    // A host notices a moment later that who asked has gone.
    for (Daemon* one : {&a_, &b_, &c_}) {
      EXPECT_TRUE(eventually([&] { return one->host.streams == 0; }));
    }
  }

  Reply ask(const std::string& method, const std::string& path, std::string body = "",
            std::map<std::string, std::string> query = {}) {
    Call call{method, "/v1" + path, std::move(query), std::move(body), {}, false, false};
    return routes_.handle(call);
  }
  static json parsed(const Reply& reply) { return json::parse(reply.body); }
  static std::string code(const Reply& reply) {
    return reply.body.empty() ? "" : parsed(reply).value("code", "");
  }

  // A file, read through the reply's pieces; the error's message if it breaks off.
  static std::string read_all(const Reply& reply) {
    std::string all = reply.body;
    while (reply.more) {
      auto piece = reply.more();
      if (!piece) return all + "!" + piece.error().message;
      if (piece->empty()) break;
      all += *piece;
    }
    return all;
  }

  // The client's end of an upgraded reply, and the thread that serves it.
  struct Client {
    Client(Reply reply, std::string early = "") {
      int pair[2];
      EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
      fd = Fd(pair[0]);
      thread = std::thread([server = pair[1], reply = std::move(reply), early]() mutable {
        const Fd ours(server);
        reply.upgraded(server, early);
        reply = Reply{};
      });
    }
    ~Client() {
      fd.reset();
      thread.join();
    }
    Fd fd;
    std::thread thread;
  };
  Client exec(const std::string& vm, const json& body, std::string early = "") {
    Call call{"POST", "/v1/vms/" + vm + "/exec", {}, body.dump(), {}, true, false};
    Reply reply = routes_.handle(call);
    EXPECT_TRUE(reply.upgraded) << reply.body;
    return Client(std::move(reply), std::move(early));
  }
  // Output, errors, last control frame.
  static std::array<std::string, 3> drain(int fd) {
    std::array<std::string, 3> all;
    FrameReader reader;
    for (;;) {
      auto frame = reader.next();
      if (!frame) return all;
      if (*frame) {
        auto& into = all[static_cast<size_t>((*frame)->channel) - 1];
        if ((*frame)->channel == Channel::control) into.clear();
        into += (*frame)->bytes;
        continue;
      }
      char buffer[65536];
      const ssize_t count = ::recv(fd, buffer, sizeof buffer, 0);
      if (count <= 0) return all;
      reader.feed(std::string_view(buffer, static_cast<size_t>(count)));
    }
  }
  template <class Condition>
  static bool eventually(Condition condition) {
    for (int turn = 0; turn < 3000; ++turn) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  peer::TestFolder folder_;
  Daemon a_{folder_ / "", "a"}, b_{folder_ / "", "b"}, c_{folder_ / "", "c"};
  std::atomic<bool> stopping_{false};
  Routes routes_{a_.host, stopping_};
};

// Listens and never answers.
class DeafHost {
 public:
  DeafHost() : fd_(peer::need(peer::listen_tcp({"127.0.0.1", 0}))) {}
  [[nodiscard]] peer::Address address() const {
    sockaddr_storage storage{};
    socklen_t length = sizeof storage;
    ::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&storage), &length);
    return peer::from_socket_address(storage);
  }

 private:
  Fd fd_;
};

TEST_F(ForwardTest, AVmIsFoundOnItsHost) {
  EXPECT_EQ(parsed(ask("GET", "/vms/web-of-b"))["id"], "b0c0ffee");
  EXPECT_EQ(parsed(ask("GET", "/vms/c0c0ffee"))["host"], "c");
  EXPECT_EQ(ask("POST", "/vms/web-of-b/pause").status, 200);
  EXPECT_EQ(b_.host.state, "paused");
  EXPECT_EQ(a_.host.state, "running");
  const Reply fork = ask("POST", "/vms/web-of-c/fork", R"({"count": 2, "place": "spread"})");
  EXPECT_EQ(fork.status, 201);
  EXPECT_EQ(parsed(fork)["clones"].size(), 2u);
  EXPECT_EQ(c_.host.last_fork.placing.policy, "spread");
  EXPECT_EQ(ask("DELETE", "/vms/web-of-b", "", {{"force", "true"}}).status, 204);
}

TEST_F(ForwardTest, ErrorsOfAnotherHostComeAsTheyAre) {
  Reply reply = ask("DELETE", "/vms/web-of-b");
  EXPECT_EQ(reply.status, 409);
  EXPECT_EQ(code(reply), "wrong_state");
  EXPECT_NE(parsed(reply)["message"].get<std::string>().find("snow rm -f"), std::string::npos);
  EXPECT_EQ(code(ask("POST", "/vms/web-of-b/fork", R"({"cuont": 1})")), "usage");
  EXPECT_EQ(code(ask("GET", "/vms/nowhere")), "not_found");
  EXPECT_EQ(code(ask("POST", "/tickets/nowhere/join")), "not_found");
  EXPECT_EQ(code(ask("GET", "/vms/web-of-b/file", "", {{"path", "/none"}})), "not_found");
  EXPECT_EQ(code(ask("GET", "/vms/web-of-a/file", "", {{"path", "/none"}})), "not_found");
  // Not for VMs: nobody else is asked.
  EXPECT_EQ(code(ask("GET", "/images/other")), "not_found");
}

TEST_F(ForwardTest, TicketsAreFoundOnTheirHost) {
  EXPECT_EQ(parsed(ask("POST", "/tickets/tb/kill"))["count"], 2);
  EXPECT_EQ(ask("POST", "/tickets/tc/join").status, 200);
  EXPECT_EQ(ask("DELETE", "/tickets/tb").status, 204);
  EXPECT_EQ(parsed(ask("GET", "/tickets")).size(), 3u);
}

TEST_F(ForwardTest, ListsHaveTheVmsOfAllHosts) {
  const Reply reply = ask("GET", "/vms", "", {{"all", "true"}});
  const json list = parsed(reply);
  EXPECT_EQ(list.size(), 5u);  // three of a, one each of the others
  std::set<std::string> hosts;
  for (const json& vm : list) hosts.insert(vm["host"]);
  EXPECT_EQ(hosts, (std::set<std::string>{"a", "b", "c"}));
  EXPECT_TRUE(reply.missing.empty());
}

TEST_F(ForwardTest, ADeafHostIsLeftOutAndNamed) {
  const DeafHost deaf;
  a_.neighbours->add("h00000000000d", "d", deaf.address());
  const Reply reply = ask("GET", "/vms");
  EXPECT_EQ(parsed(reply).size(), 4u);
  EXPECT_EQ(reply.missing, std::vector<std::string>{"d"});
  EXPECT_EQ(parsed(ask("GET", "/vms/web-of-b"))["id"], "b0c0ffee");
  // It may have what nobody else has: that is not "not found".
  const Reply unknown = ask("GET", "/vms/nowhere");
  EXPECT_EQ(code(unknown), "unavailable");
  EXPECT_NE(parsed(unknown)["message"].get<std::string>().find("no answer from d"),
            std::string::npos);
  EXPECT_EQ(code(ask("POST", "/tickets/nowhere/join")), "unavailable");
}

TEST_F(ForwardTest, ANameOfSeveralHostsIsRefused) {
  b_.host.vm_name = c_.host.vm_name = "twin";
  const Reply reply = ask("POST", "/vms/twin/kill");
  EXPECT_EQ(code(reply), "invalid");
  EXPECT_NE(parsed(reply)["message"].get<std::string>().find("hosts b, c"), std::string::npos)
      << reply.body;
  EXPECT_EQ(ask("POST", "/vms/b0c0ffee/kill").status, 200);
  // What the asked host has itself comes first.
  a_.host.vm_name = "twin";
  EXPECT_EQ(parsed(ask("GET", "/vms/twin"))["host"], "a");
}

TEST_F(ForwardTest, WhatWasPassedOnIsNotPassedOnAgain) {
  a_.neighbours->lose(c_.id);
  EXPECT_EQ(code(ask("GET", "/vms/web-of-c")), "not_found");  // b knows c, but must not ask it
  EXPECT_EQ(parsed(ask("GET", "/vms", "", {{"all", "true"}})).size(), 4u);
}

TEST_F(ForwardTest, OnlyRequestsAboutVmsAndTicketsAreTakenFromOthers) {
  for (const char* path : {"/v1/vms", "/v1/images", "/v1/cluster", "/v1/hosts/a/drain"}) {
    auto lease = peer::need(a_.neighbours->pool().take(b_.id, kService, peer::kTestMs));
    const Call call{"POST", path, {}, "{}", {}, false, false};
    ASSERT_TRUE(lease->send(kRequest, encode_request(call, false),
                            std::as_bytes(std::span(call.body)), peer::kTestMs));
    const auto frame = peer::need(lease->receive(peer::kTestMs));
    const Head head = peer::need(decode_reply(frame.payload));
    EXPECT_EQ(json::parse(head.body)["code"], "denied") << path;
  }
}

TEST_F(ForwardTest, GarbageEndsAConnectionOrIsRefused) {
  auto lease = peer::need(a_.neighbours->pool().take(b_.id, kService, peer::kTestMs));
  ASSERT_TRUE(lease->send(kRequest, peer::some_bytes(100), peer::kTestMs));
  const auto frame = peer::need(lease->receive(peer::kTestMs));
  EXPECT_EQ(json::parse(peer::need(decode_reply(frame.payload)).body)["code"], "corrupt");
  ASSERT_TRUE(lease->send(kPiece, {}, peer::kTestMs));
  EXPECT_FALSE(lease->receive(peer::kTestMs));
  lease.drop();
  lease = peer::need(a_.neighbours->pool().take(b_.id, kService, peer::kTestMs));
  (void)lease->send(kRequest, std::vector<std::byte>(kMaxRequestFrame + 1), peer::kTestMs);
  EXPECT_FALSE(lease->receive(peer::kTestMs));
  lease.drop();
  EXPECT_EQ(ask("GET", "/vms/web-of-b").status, 200);
}

TEST_F(ForwardTest, FilesPassBothWays) {
  std::string content;
  for (int i = 0; content.size() < (5u << 20); ++i) content += fmt::format("{} ", i);
  const Call put{"PUT", "/v1/vms/web-of-b/file", {{"path", "/big"}, {"mode", "755"}}, "", {}, false,
                 false};
  auto upload = peer::need(routes_.upload(put));
  ASSERT_TRUE(upload);
  for (size_t at = 0; at < content.size(); at += 100'000) {
    ASSERT_TRUE(upload->write(std::string_view(content).substr(at, 100'000)));
  }
  EXPECT_EQ(upload->finish().status, 204);
  upload.reset();
  EXPECT_EQ(b_.host.files["/big:mode"], "755");
  const Reply reply = ask("GET", "/vms/web-of-b/file", "", {{"path", "/big"}});
  EXPECT_STREQ(reply.type, "application/octet-stream");
  EXPECT_TRUE(read_all(reply) == content);
  // Cut short there, cut short here.
  EXPECT_NE(read_all(ask("GET", "/vms/web-of-b/file", "", {{"path", "/torn"}})).find("midway"),
            std::string::npos);
  EXPECT_EQ(read_all(ask("GET", "/vms/web-of-b/logs")), "Linux version\r\nlogin: ");
}

TEST_F(ForwardTest, AnUploadThatIsRefusedOrGivenUp) {
  Call put{"PUT", "/v1/vms/nowhere/file", {{"path", "/x"}}, "", {}, false, false};
  EXPECT_EQ(routes_.upload(put).error().code, Code::not_found);
  put.path = "/v1/vms/web-of-b/file";
  put.query["mode"] = "9";
  EXPECT_EQ(routes_.upload(put).error().code, Code::invalid);
  put.query = {{"path", "/full"}};
  auto upload = peer::need(routes_.upload(put));
  (void)upload->write("x");
  EXPECT_EQ(upload->finish().status, 502);
  put.query = {{"path", "/half"}};
  upload = peer::need(routes_.upload(put));
  ASSERT_TRUE(upload->write("x"));
  upload.reset();
  EXPECT_TRUE(eventually([&] { return b_.host.streams == 0; }));
  EXPECT_FALSE(b_.host.files.contains("/half"));
}

TEST_F(ForwardTest, ProgramsRunOnTheOtherHost) {
  {
    const Client client = exec("web-of-b", {{"argv", {"fail", "went wrong", "3"}}});
    EXPECT_EQ(drain(client.fd.get()),
              (std::array<std::string, 3>{"", "went wrong", R"({"exit":3})"}));
  }
  {
    const Client client = exec("web-of-b", {{"argv", {"flood", "3000000"}}});
    const auto all = drain(client.fd.get());
    EXPECT_EQ(all[0].size(), 3'000'000u);
    EXPECT_EQ(all[2], R"({"exit":0})");
  }
  {
    const std::string input =
        encode_frame(Channel::input, "abc") + encode_frame(Channel::input, "");
    const Client client = exec("web-of-b", {{"argv", {"cat"}}}, input);
    EXPECT_EQ(drain(client.fd.get()), (std::array<std::string, 3>{"abc", "", R"({"exit":0})"}));
  }
  const Client client = exec("web-of-b", {{"argv", {"wait"}}});
  ASSERT_TRUE(send_frame(client.fd.get(), Channel::control, R"({"signal": 15})"));
  EXPECT_EQ(drain(client.fd.get())[2], R"({"exit":143})");
}

TEST_F(ForwardTest, AClientThatGoesEndsItsProgramThere) {
  {
    const Client client = exec("web-of-b", {{"argv", {"wait"}}});
    EXPECT_TRUE(eventually([&] { return b_.host.streams == 1; }));
  }
  EXPECT_TRUE(eventually([&] { return b_.host.streams == 0; }));
  EXPECT_EQ(b_.host.last_signal, 9);
}

TEST_F(ForwardTest, AClientThatGoesEndsAProgramThatTakesNoInput) {
  {
    const Client client = exec("web-of-b", {{"argv", {"stuck"}}});
    const std::string frame = encode_frame(Channel::input, std::string(kMaxFrameBytes, 'x'));
    // Until every buffer on the way is full.
    for (int idle = 0; idle < 20;) {
      if (::send(client.fd.get(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
        idle = 0;
      } else {
        ++idle;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    }
  }
  EXPECT_TRUE(eventually([&] { return b_.host.streams == 0; }));
  EXPECT_EQ(b_.host.last_signal, 9);
}

TEST_F(ForwardTest, AClientIsToldThatTheHostIsLost) {
  const Client client = exec("web-of-b", {{"argv", {"wait"}}});
  EXPECT_TRUE(eventually([&] { return b_.host.streams == 1; }));
  a_.neighbours->lose(b_.id);
  const auto control = json::parse(drain(client.fd.get())[2]);
  EXPECT_EQ(control["error"]["code"], "unavailable");
}

TEST_F(ForwardTest, TheConsoleOfTheOtherHost) {
  const Call call{"POST", "/v1/vms/web-of-b/console", {}, "", {}, true, false};
  Reply reply = routes_.handle(call);
  ASSERT_TRUE(reply.upgraded) << reply.body;
  const Client client(std::move(reply), encode_frame(Channel::input, "good bye"));
  const auto all = drain(client.fd.get());
  EXPECT_EQ(all[0], "GOOD BYE");
  EXPECT_EQ(all[2], R"({"exit":0})");
}

TEST_F(ForwardTest, ARequestEndsWhenItsHostIsGone) {
  b_.host.hold_inspect = true;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    a_.neighbours->lose(b_.id);
  });
  EXPECT_EQ(code(ask("GET", "/vms/web-of-b")), "unavailable");
  later.join();
  b_.host.hold_inspect = false;
}

TEST_F(ForwardTest, AHostTellsOfItsExchangeItself) {
  // The tests' Host knows of a host "b" that it takes for gone; its exchange is asked of the real
  // b.
  const json host = parsed(ask("GET", "/hosts/b"));
  EXPECT_TRUE(host.contains("exchange")) << host;
  EXPECT_EQ(host["self"], false);
  EXPECT_EQ(code(ask("GET", "/hosts/none")), "not_found");
}

TEST_F(ForwardTest, AServerStopsAlthoughOthersAreConnected) {
  EXPECT_EQ(ask("GET", "/vms/web-of-b").status, 200);
  EXPECT_TRUE(b_.server->stop(60'000));
  EXPECT_EQ(code(ask("GET", "/vms/web-of-b")), "unavailable");
}

TEST_F(ForwardTest, WithoutAClusterNothingIsAsked) {
  a_.host.others = nullptr;
  EXPECT_EQ(code(ask("GET", "/vms/web-of-b")), "not_found");
  EXPECT_EQ(parsed(ask("GET", "/vms")).size(), 2u);
}

}  // namespace
}  // namespace snow::forward
