// What bad luck and bad peers get: each ends with a clear error within its deadline, and nobody
// else notices.
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <thread>

#include "peer/bytes.h"
#include "peer/test_cluster.h"

namespace snow::peer {
namespace {

// A listener whose one connection is handled by hand.
class Impostor {
 public:
  explicit Impostor(std::function<void(int)> act) : listener_(need(listen_tcp({"127.0.0.1", 0}))) {
    sockaddr_storage bound{};
    socklen_t length = sizeof bound;
    ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&bound), &length);
    address_ = from_socket_address(bound);
    thread_ = std::thread([this, act = std::move(act)] {
      const Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (fd) act(fd.get());
    });
  }
  ~Impostor() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  [[nodiscard]] Address address() const { return address_; }

 private:
  Fd listener_;
  Address address_;
  std::thread thread_;
};

void read_frame(int fd) {
  std::array<std::byte, 4> length{};
  if (::recv(fd, length.data(), 4, MSG_WAITALL) != 4) return;
  std::vector<std::byte> rest(std::to_integer<size_t>(length[0]));
  (void)::recv(fd, rest.data(), rest.size(), MSG_WAITALL);
}

void write_bytes(int fd, std::span<const std::byte> bytes) {
  (void)::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

void write_frame(int fd, uint8_t type, std::span<const std::byte> payload) {
  write_bytes(fd, encode_header(type, payload.size()));
  write_bytes(fd, payload);
}

void say_hello(int fd) {
  read_frame(fd);
  write_frame(fd, kHello, encode_hello({kVersion, kHostA, "echo"}));
}

void until_closed(int fd) {
  std::array<std::byte, 4096> buffer{};
  while (::recv(fd, buffer.data(), buffer.size(), 0) > 0) {
  }
}

Result<std::unique_ptr<Connection>> connect_to(const Address& address, int timeout_ms = kTestMs) {
  return Connection::connect(*plain_credentials(kHostB), address, kHostA, "echo", timeout_ms);
}

Fd raw_connect(const Address& address) { return need(connect_tcp(address, Deadline(kTestMs))); }

// The first frame that a server answers these bytes with, or nothing.
std::optional<Error> refusal(const Address& address, std::span<const std::byte> bytes) {
  const Fd fd = raw_connect(address);
  write_bytes(fd.get(), bytes);
  std::vector<std::byte> answer(5000);
  const ssize_t got = ::recv(fd.get(), answer.data(), answer.size(), MSG_WAITALL);
  if (got < static_cast<ssize_t>(kHeaderBytes) || answer[4] != std::byte{kError}) return {};
  answer.resize(static_cast<size_t>(got));
  return decode_error(std::span(answer).subspan(kHeaderBytes));
}

std::vector<std::byte> frame_bytes(uint8_t type, std::span<const std::byte> payload) {
  Writer out;
  out.raw(encode_header(type, payload.size()));
  out.raw(payload);
  return out.take();
}

TEST(Hostile, AcceptsAndNeverAnswers) {
  const Impostor impostor(until_closed);
  const auto plain = connect_to(impostor.address(), 50);
  EXPECT_EQ(plain.error().code, Code::timed_out) << plain.error().message;
  TestCluster cluster;
  const Impostor other(until_closed);
  const auto tls =
      Connection::connect(*cluster.credentials(kHostB), other.address(), kHostA, "echo", 50);
  EXPECT_EQ(tls.error().code, Code::timed_out) << tls.error().message;
}

TEST(Hostile, ListensAndNeverAccepts) {
  const Fd listener = need(listen_tcp({"127.0.0.1", 0}));
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&bound), &length);
  EXPECT_EQ(connect_to(from_socket_address(bound), 50).error().code, Code::timed_out);
}

TEST(Hostile, HalfAFrameAndThenDeath) {
  const Impostor impostor([](int fd) {
    say_hello(fd);
    read_frame(fd);
    auto bytes = frame_bytes(kTestType, some_bytes(1000));
    bytes.resize(500);
    write_bytes(fd, bytes);
  });
  const auto connection = need(connect_to(impostor.address()));
  need(connection->send(kTestType, some_bytes(3), kTestMs));
  const auto reply = connection->receive(kTestMs);
  EXPECT_EQ(reply.error().code, Code::unavailable);
  EXPECT_TRUE(connection->broken());
}

TEST(Hostile, HalfAFrameAndThenSilence) {
  const Impostor impostor([](int fd) {
    say_hello(fd);
    auto bytes = frame_bytes(kTestType, some_bytes(100'000));
    bytes.resize(40'000);
    write_bytes(fd, bytes);
    until_closed(fd);
  });
  const auto connection = need(connect_to(impostor.address()));
  EXPECT_EQ(connection->receive(100).error().code, Code::timed_out);
}

TEST(Hostile, AByteNowAndThenDoesNotStretchTheDeadline) {
  const Impostor impostor([](int fd) {
    say_hello(fd);
    write_bytes(fd, encode_header(kTestType, 100'000));
    const std::byte byte{1};
    while (::send(fd, &byte, 1, MSG_NOSIGNAL) == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  });
  auto connection = need(connect_to(impostor.address()));
  EXPECT_EQ(connection->receive(200).error().code, Code::timed_out);
  connection.reset();
}

TEST(Hostile, AFrameThatIsTooLong) {
  const Impostor impostor([](int fd) {
    say_hello(fd);
    write_bytes(fd, encode_header(kTestType, 1'000'001));
    until_closed(fd);
  });
  const auto connection = need(connect_to(impostor.address()));
  connection->set_limit(1'000'000);
  EXPECT_EQ(connection->receive(kTestMs).error().code, Code::corrupt);
  EXPECT_TRUE(connection->broken());
}

TEST(Hostile, NoHello) {
  for (const auto& bytes : {some_bytes(3000), frame_bytes(kTestType, {}),
                            frame_bytes(kHello, some_bytes(20)), std::vector<std::byte>(64)}) {
    const Impostor impostor([&](int fd) {
      read_frame(fd);
      write_bytes(fd, bytes);
      until_closed(fd);
    });
    const auto made = connect_to(impostor.address());
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().code, Code::corrupt) << made.error().message;
  }
}

TEST(Hostile, AnswersAsAnotherHost) {
  TestPair pair(false);
  pair.start();
  const auto tls =
      Connection::connect(*pair.b, pair.server.address(), "hcccccccccccc", "echo", kTestMs);
  EXPECT_EQ(tls.error().code, Code::denied) << tls.error().message;
  TestPair plain(true);
  plain.start();
  const auto made =
      Connection::connect(*plain.b, plain.server.address(), "hcccccccccccc", "echo", kTestMs);
  EXPECT_EQ(made.error().code, Code::denied) << made.error().message;
}

TEST(Hostile, AVersionFromTheFuture) {
  TestPair pair(true);
  pair.start();
  const auto error =
      refusal(pair.server.address(), frame_bytes(kHello, encode_hello({7, kHostB, "echo"})));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, Code::wrong_state);
  EXPECT_NE(error->message.find("version 7"), std::string::npos) << error->message;
  EXPECT_NE(error->message.find("version 1"), std::string::npos) << error->message;
  const Impostor impostor([](int fd) {
    read_frame(fd);
    write_frame(fd, kHello, encode_hello({8, kHostA, "echo"}));
    until_closed(fd);
  });
  const auto made = connect_to(impostor.address());
  EXPECT_EQ(made.error().code, Code::wrong_state);
  EXPECT_NE(made.error().message.find("version 8"), std::string::npos) << made.error().message;
}

TEST(Hostile, TheServerSaysWhatIsWrong) {
  TestPair pair(true);
  pair.start();
  const Address address = pair.server.address();
  EXPECT_EQ(refusal(address, frame_bytes(kHello, some_bytes(30)))->code, Code::corrupt);
  EXPECT_EQ(refusal(address, frame_bytes(kTestType, {}))->code, Code::corrupt);
  EXPECT_EQ(refusal(address, encode_header(kHello, kMaxHelloBytes + 1))->code, Code::corrupt);
  EXPECT_EQ(refusal(address, std::vector<std::byte>(5))->code, Code::corrupt);
  const auto other = encode_hello({kVersion, kHostB, "nonsense"});
  EXPECT_EQ(refusal(address, frame_bytes(kHello, other))->code, Code::not_found);
  const auto nobody = encode_hello({kVersion, "", "echo"});
  EXPECT_EQ(refusal(address, frame_bytes(kHello, nobody))->code, Code::denied);
}

TEST(Hostile, ACertificateOfAnotherCluster) {
  TestPair pair(false);
  pair.start();
  TestCluster other;
  const auto stranger = other.credentials(kHostB);
  const auto made = Connection::connect(*stranger, pair.server.address(), kHostA, "echo", kTestMs);
  EXPECT_EQ(made.error().code, Code::denied) << made.error().message;
  // One that does not look at ours, so that it is the server who has to refuse.
  SSL_CTX_set_verify(stranger->client_context(), SSL_VERIFY_NONE, nullptr);
  const auto blind = Connection::connect(*stranger, pair.server.address(), "", "echo", kTestMs);
  EXPECT_EQ(blind.error().code, Code::denied) << blind.error().message;
}

TEST(Hostile, ACertificateThatHasExpired) {
  TestPair pair(false);
  pair.start();
  const std::string host = "hcccccccccccc";
  need(make_host_certificate(pair.cluster.folder(), host));
  const auto us = need(Credentials::load(identity_in(pair.cluster.folder(), host)));
  need(make_host_certificate(pair.cluster.folder(), host, -60));
  const auto expired = need(read_certificate(pair.cluster.folder() + "/host.pem"));
  ASSERT_EQ(SSL_CTX_use_certificate(us->client_context(), expired.get()), 1);
  const auto made = Connection::connect(*us, pair.server.address(), kHostA, "echo", kTestMs);
  EXPECT_EQ(made.error().code, Code::denied) << made.error().message;
  EXPECT_NE(made.error().message.find("expired"), std::string::npos) << made.error().message;
}

TEST(Hostile, OneEndIsPlain) {
  TestPair plain(true);
  plain.start();
  TestPair tls(false);
  tls.start();
  const auto to_plain =
      Connection::connect(*tls.b, plain.server.address(), kHostA, "echo", kTestMs);
  EXPECT_FALSE(to_plain);
  EXPECT_NE(to_plain.error().message.find("plain"), std::string::npos) << to_plain.error().message;
  const auto to_tls = Connection::connect(*plain.b, tls.server.address(), kHostA, "echo", kTestMs);
  EXPECT_FALSE(to_tls);
  EXPECT_NE(to_tls.error().message.find("plain"), std::string::npos) << to_tls.error().message;
}

TEST(Hostile, WhoSaysNothingIsCutOff) {
  for (const bool plain : {true, false}) {
    TestPair pair(plain, {.hello_ms = 100});
    pair.start();
    const Fd silent = raw_connect(pair.server.address());
    until_closed(silent.get());
    while (pair.server.connections() > 0) std::this_thread::yield();
  }
}

TEST(Hostile, ManyWhoSayNothingKeepNobodyOut) {
  for (const bool plain : {true, false}) {
    // A deadline that cannot help: the oldest have to give way.
    TestPair pair(plain, {.hello_ms = 10 * kTestMs, .handshakes = 8});
    pair.start();
    const auto established = need(pair.pool.take(kHostA, "echo", kTestMs));
    std::vector<Fd> silent;
    for (int i = 0; i < 100; ++i) silent.push_back(raw_connect(pair.server.address()));
    const auto fresh = need(pair.pool.take_new(kHostA, "echo", kTestMs));
    for (const Lease* lease : {&established, &fresh}) {
      need((*lease)->send(kTestType, some_bytes(7), kTestMs));
      EXPECT_EQ(need((*lease)->receive(kTestMs)).payload, some_bytes(7));
    }
    while (pair.server.connections() > 2u + 8) std::this_thread::yield();
  }
}

TEST(Hostile, TooManyConnections) {
  TestPair pair(true, {.connections = 5, .connections_per_host = 3});
  pair.start();
  std::vector<Lease> leases;
  for (int i = 0; i < 3; ++i) leases.push_back(need(pair.pool.take_new(kHostA, "echo", kTestMs)));
  const auto fourth = pair.pool.take_new(kHostA, "echo", kTestMs);
  EXPECT_EQ(fourth.error().code, Code::no_room) << fourth.error().message;
  const auto other = plain_credentials("hcccccccccccc");
  std::vector<std::unique_ptr<Connection>> others;
  for (int i = 0; i < 2; ++i) {
    others.push_back(
        need(Connection::connect(*other, pair.server.address(), kHostA, "echo", kTestMs)));
  }
  const auto sixth = Connection::connect(*other, pair.server.address(), kHostA, "echo", kTestMs);
  EXPECT_EQ(sixth.error().code, Code::no_room);
  leases.clear();
  pair.pool.forget(kHostA);
  while (pair.server.connections() > 2) std::this_thread::yield();
  EXPECT_TRUE(pair.pool.take_new(kHostA, "echo", kTestMs));
}

TEST(Hostile, AHostThatWasRemovedIsRefused) {
  TestPair pair(false,
                {.admission = [](const std::string& host, const std::string&) -> Result<void> {
                  return fail(Code::denied, "host '{}': was removed from the cluster", host);
                }});
  pair.start();
  const auto taken = pair.pool.take(kHostA, "echo", kTestMs);
  EXPECT_EQ(taken.error().code, Code::denied);
  EXPECT_NE(taken.error().message.find("was removed"), std::string::npos);
}

TEST(Hostile, ForgetCutsAHostOff) {
  TestPair pair(false);
  pair.start();
  const auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
  pair.server.forget(kHostB);
  EXPECT_EQ(lease->receive(kTestMs).error().code, Code::unavailable);
}

TEST(Hostile, AThousandConnectsLeakNothing) {
  const size_t before = open_descriptors();
  for (const bool plain : {true, false}) {
    TestPair pair(plain);
    pair.start();
    for (int i = 0; i < 500; ++i) {
      auto lease = need(pair.pool.take(kHostA, "echo", kTestMs));
      need(lease->send(kTestType, some_bytes(5), kTestMs));
      EXPECT_EQ(need(lease->receive(kTestMs)).payload.size(), 5u);
      lease.drop();
      EXPECT_EQ(
          static_cast<bool>(pair.pool.take(kHostA, i % 10 == 0 ? "nonsense" : "echo", kTestMs)),
          i % 10 != 0);
    }
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Hostile, StopEndsAllThatIsOpen) {
  TestPair pair(false);
  pair.server.add("wait", [](Connection& connection) { (void)connection.receive(kForever); });
  pair.start();
  const auto idle = need(pair.pool.take(kHostA, "wait", kTestMs));
  const Fd silent = raw_connect(pair.server.address());
  pair.server.stop();
  EXPECT_EQ(pair.server.connections(), 0u);
  EXPECT_EQ(idle->receive(kTestMs).error().code, Code::unavailable);
  pair.server.stop();
}

TEST(Hostile, ASenderIsWokenWhenItsPeerDies) {
  for (const bool plain : {true, false}) {
    TestPair pair(plain);
    std::atomic<bool> done{false};
    pair.server.add("deaf", [&](Connection&) { done.wait(false); });
    pair.start();
    const auto lease = need(pair.pool.take(kHostA, "deaf", kTestMs));
    lease->allow_duplex();
    std::thread killer([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      done = true;
      done.notify_all();
    });
    Result<void> sent;
    while (sent) sent = lease->send(kTestType, some_bytes(1'000'000), kTestMs);
    EXPECT_EQ(sent.error().code, Code::unavailable);
    // Neither direction waits for the other's lock.
    EXPECT_EQ(lease->send(kTestType, {}, kTestMs).error().code, Code::unavailable);
    EXPECT_EQ(lease->receive(kTestMs).error().code, Code::unavailable);
    killer.join();
  }
}

}  // namespace
}  // namespace snow::peer
