// What a request costs: 64 bytes there, 4 KiB back, between two threads over loopback. Bare TCP, a
// plain Connection, and one with TLS, the latter two through a Pool as a page fault goes.
//
//     build/release/peer/peer_bench [ROUNDS]
#include <fmt/core.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <thread>

#include "base/file.h"
#include "peer/authority.h"
#include "peer/pool.h"
#include "peer/server.h"

namespace {

using namespace snow;
using namespace snow::peer;

constexpr size_t kRequestBytes = 64;
constexpr size_t kReplyBytes = 4096;
constexpr uint8_t kType = kFirstFree;
constexpr int kTimeoutMs = 10'000;

template <class T>
T need(Result<T> result) {
  if (result) return *std::move(result);
  fmt::print(stderr, "peer_bench: {}\n", result.error().message);
  std::exit(1);
}
void need(const Result<void>& result) {
  if (result) return;
  fmt::print(stderr, "peer_bench: {}\n", result.error().message);
  std::exit(1);
}

void report(const char* name, std::vector<int64_t>& times_ns) {
  std::sort(times_ns.begin(), times_ns.end());
  fmt::print("{}_p50_us {:.1f}\n{}_p99_us {:.1f}\n", name,
             static_cast<double>(times_ns[times_ns.size() / 2]) / 1e3, name,
             static_cast<double>(times_ns[times_ns.size() * 99 / 100]) / 1e3);
}

template <class Once>
void measure(const char* name, size_t rounds, Once once) {
  for (size_t i = 0; i < rounds / 10; ++i) once();
  std::vector<int64_t> times_ns;
  times_ns.reserve(rounds);
  for (size_t i = 0; i < rounds; ++i) {
    const int64_t begin_ns = monotonic_ns();
    once();
    times_ns.push_back(monotonic_ns() - begin_ns);
  }
  report(name, times_ns);
}

void read_exactly(int fd, std::span<std::byte> into) {
  for (size_t have = 0; have < into.size();) {
    const ssize_t got = ::read(fd, into.data() + have, into.size() - have);
    if (got <= 0) return;
    have += static_cast<size_t>(got);
  }
}

void bare_tcp(size_t rounds) {
  const Fd listener = need(listen_tcp({"127.0.0.1", 0}));
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&bound), &length);
  std::thread server([&] {
    const Socket socket(Fd(::accept(listener.get(), nullptr, nullptr)));
    std::array<std::byte, kRequestBytes> request{};
    const std::vector<std::byte> reply(kReplyBytes);
    while (::recv(socket.fd(), request.data(), request.size(), MSG_WAITALL) > 0) {
      need(write_all(socket.fd(), reply, "bench"));
    }
  });
  {
    const Socket socket(need(connect_tcp(from_socket_address(bound), Deadline(kTimeoutMs))));
    const std::array<std::byte, kRequestBytes> request{};
    std::vector<std::byte> reply(kReplyBytes);
    measure("bare_tcp", rounds, [&] {
      need(write_all(socket.fd(), request, "bench"));
      read_exactly(socket.fd(), reply);
    });
  }
  server.join();
}

void through_pool(const char* name, size_t rounds, const std::shared_ptr<const Credentials>& us) {
  Server server(us);
  const std::vector<std::byte> page(kReplyBytes);
  server.add("pages", [&](Connection& connection) {
    std::vector<std::byte> request;
    while (connection.receive_into(request, kForever)) {
      if (!connection.send(kType, page, kTimeoutMs)) return;
    }
  });
  server.add("bulk", [&](Connection& connection) {
    const std::vector<std::byte> block(size_t{1} << 20);
    while (connection.send(kType, block, kTimeoutMs)) {
    }
  });
  need(server.start({"127.0.0.1", 0}));
  Pool pool(us, [&](const std::string&) { return Result<Address>(server.address()); });
  const std::array<std::byte, kRequestBytes> request{};
  std::vector<std::byte> reply;
  measure(name, rounds, [&] {
    const Lease lease = need(pool.take(us->host(), "pages", kTimeoutMs));
    need(lease->send(kType, request, kTimeoutMs));
    need(lease->receive_into(reply, kTimeoutMs));
  });
  Lease bulk = need(pool.take(us->host(), "bulk", kTimeoutMs));
  const int64_t begin_ns = monotonic_ns();
  constexpr int kBlocks = 1024;
  for (int i = 0; i < kBlocks; ++i) need(bulk->receive_into(reply, kTimeoutMs));
  fmt::print("{}_stream_gbit_s {:.2f}\n", name,
             kBlocks * 8.388608e6 / static_cast<double>(monotonic_ns() - begin_ns));
  bulk.drop();
}

}  // namespace

int main(int argc, char** argv) {
  const size_t rounds = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 20'000;
  char folder[] = "/tmp/snow-peer-bench-XXXXXX";
  if (::mkdtemp(folder) == nullptr) return 1;
  const std::string host = random_host_id();
  const auto made = make_authority(folder, "bench");
  const auto certified = make_host_certificate(folder, host);
  auto tls = Credentials::load(identity_in(folder, host));
  remove_all(folder);
  need(made);
  need(certified);
  bare_tcp(rounds);
  Identity plain;
  plain.host = host;
  plain.plain = true;
  through_pool("plain", rounds, need(Credentials::load(plain)));
  through_pool("tls", rounds, need(std::move(tls)));
}
