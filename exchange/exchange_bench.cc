// What a remote page and a fill cost, against bare TCP, between two processes over loopback:
//
//     build/release/exchange/exchange_bench [MIB [FOLDER]]
//
// FOLDER holds image and cache files (default /dev/shm: the disk is not what is measured). Prints
// for each of plain and TLS: p50 and p99 of RemoteLayer::read of one absent 4 KiB page and its p50
// over that of a bare TCP request-reply; fill of MIB random MiB over a bare TCP stream of as many
// bytes; fill of an image of zeros.
#include <fcntl.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <random>

#include "base/file.h"
#include "exchange/exchange.h"
#include "image/image.h"
#include "peer/authority.h"
#include "peer/pool.h"
#include "peer/server.h"

namespace {

using namespace snow;
using exchange::kPageBytes;

constexpr size_t kRounds = 20'000;
constexpr size_t kBlockBytes = 256 * 1024;

template <class T>
T need(Result<T> result) {
  if (!result) {
    fmt::print(stderr, "exchange_bench: {}\n", result.error().message);
    ::_exit(1);
  }
  if constexpr (!std::is_void_v<T>) return *std::move(result);
}

double seconds_since(int64_t begin_ns) {
  return static_cast<double>(monotonic_ns() - begin_ns) / 1e9;
}

struct Times {
  std::vector<int64_t> ns;
  double quantile_us(double share) {
    std::sort(ns.begin(), ns.end());
    return static_cast<double>(ns[static_cast<size_t>(static_cast<double>(ns.size()) * share)]) /
           1e3;
  }
};

template <class Once>
Times measure(Once once) {
  Times times;
  for (size_t i = 0; i < kRounds; ++i) {
    const int64_t begin_ns = monotonic_ns();
    once(i);
    times.ns.push_back(monotonic_ns() - begin_ns);
  }
  return times;
}

// The other process: runs `serve`, which says a line when it is ready, until this goes away.
class Child {
 public:
  explicit Child(const std::function<std::string()>& serve) {
    int up[2], down[2];
    if (::pipe2(up, O_CLOEXEC) != 0 || ::pipe2(down, O_CLOEXEC) != 0) ::_exit(1);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(down[1]);
      const std::string said = serve() + "\n";
      need(write_all(up[1], std::as_bytes(std::span(said)), "pipe"));
      char byte = 0;
      while (::read(down[0], &byte, 1) > 0) {
      }
      ::_exit(0);
    }
    ::close(up[1]);
    ::close(down[0]);
    hold_.reset(down[1]);
    char byte = 0;
    while (::read(up[0], &byte, 1) == 1 && byte != '\n') line += byte;
    ::close(up[0]);
  }
  ~Child() {
    hold_.reset();
    ::waitpid(pid_, nullptr, 0);
  }
  std::string line;

 private:
  pid_t pid_ = -1;
  Fd hold_;
};

void read_exactly(int fd, std::span<std::byte> into) {
  for (size_t have = 0; have < into.size();) {
    const ssize_t got = ::read(fd, into.data() + have, into.size() - have);
    if (got <= 0) ::_exit(1);
    have += static_cast<size_t>(got);
  }
}

// First byte of a request: how much is wanted.
void serve_bare(int fd, uint64_t stream_bytes) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  std::array<std::byte, 64> request{};
  const std::vector<std::byte> block(kBlockBytes, std::byte{7});
  while (::recv(fd, request.data(), request.size(), MSG_WAITALL) == 64) {
    if (request[0] == std::byte{0}) {
      need(write_all(fd, std::span(block).first(kPageBytes), "bench"));
    } else {
      for (uint64_t sent = 0; sent < stream_bytes; sent += kBlockBytes) {
        need(write_all(fd, block, "bench"));
      }
    }
  }
}

struct Bare {
  double p50_us = 0;
  double bytes_per_s = 0;
};

Bare bare_tcp(uint64_t stream_bytes) {
  Fd listener = need(peer::listen_tcp({"127.0.0.1", 0}));
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&bound), &length);
  const Child child([&] {
    std::thread([&] {
      serve_bare(::accept(listener.get(), nullptr, nullptr), stream_bytes);
    }).detach();
    return std::string("ready");
  });
  const Fd fd = need(peer::connect_tcp(peer::from_socket_address(bound), peer::Deadline(10'000)));
  const int on = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  std::array<std::byte, 64> request{};
  std::vector<std::byte> reply(kBlockBytes);
  Bare bare;
  bare.p50_us = measure([&](size_t) {
                  need(write_all(fd.get(), request, "bench"));
                  read_exactly(fd.get(), std::span(reply).first(kPageBytes));
                }).quantile_us(0.5);
  request[0] = std::byte{1};
  const int64_t begin_ns = monotonic_ns();
  need(write_all(fd.get(), request, "bench"));
  for (uint64_t got = 0; got < stream_bytes; got += kBlockBytes) read_exactly(fd.get(), reply);
  bare.bytes_per_s = static_cast<double>(stream_bytes) / seconds_since(begin_ns);
  return bare;
}

std::shared_ptr<Content> image_of(const std::string& path, uint64_t size) {
  return need(Image::of_file(path, size, false, Image::Holes::are_data));
}

void through_exchange(const char* name, const std::string& folder, uint64_t size, const Bare& bare,
                      const std::shared_ptr<const peer::Credentials>& origin,
                      const std::shared_ptr<const peer::Credentials>& us) {
  const Child child([&] {
    auto* pool = new peer::Pool(origin, [](const std::string&) -> Result<peer::Address> {
      return fail(Code::unavailable, "none");
    });
    exchange::Options options;
    options.host = origin->host();
    auto* offering = new exchange::Exchange(*pool, options);
    auto* server = new peer::Server(origin);
    offering->serve(*server);
    need(server->start({"127.0.0.1", 0}));
    const auto image = [&](const char* file) {
      return to_json(offering->offer(image_of(folder + "/" + file, size)));
    };
    return nlohmann::json{
        {"port", server->address().port}, {"random", image("random")}, {"zeros", image("zeros")}}
        .dump();
  });
  const auto told = nlohmann::json::parse(child.line);
  const peer::Address address{"127.0.0.1", told["port"]};
  peer::Pool pool(us, [&](const std::string&) { return Result<peer::Address>(address); });
  exchange::Options options;
  options.host = us->host();
  exchange::Exchange fetching(pool, options);
  const auto open = [&](const char* image) {
    return need(fetching.open(need(exchange::descriptor_from_json(told[image])),
                              folder + "/cache-" + image));
  };
  const uint64_t pages = size / kPageBytes;
  {
    const auto layer = open("random");
    std::vector<std::byte> page(kPageBytes);
    Times times =
        measure([&](size_t i) { need(layer->read((i * 1'000'003) % pages * kPageBytes, page)); });
    const double p50_us = times.quantile_us(0.5);
    fmt::print("{}_fault_p50_us {:.1f}\n{}_fault_p99_us {:.1f}\n{}_fault_over_rtt {:.2f}\n", name,
               p50_us, name, times.quantile_us(0.99), name, p50_us / bare.p50_us);
  }
  for (const char* image : {"random", "zeros"}) {
    const auto layer = open(image);
    const int64_t begin_ns = monotonic_ns();
    need(layer->detach(-1));
    const double rate = static_cast<double>(size) / seconds_since(begin_ns);
    fmt::print("{}_fill_{}_gb_s {:.2f}\n", name, image, rate / 1e9);
    if (image[0] == 'r') fmt::print("{}_stream_over_tcp {:.2f}\n", name, rate / bare.bytes_per_s);
  }
}

void write_image(const std::string& path, uint64_t size, bool random) {
  const Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  std::mt19937_64 generator(1);
  std::vector<uint64_t> block(kBlockBytes / 8);
  for (uint64_t at = 0; random && at < size; at += kBlockBytes) {
    for (uint64_t& word : block) word = generator();
    need(write_all_at(fd.get(), at, std::as_bytes(std::span(block)), path));
  }
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) ::_exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t size = (argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1024) << 20;
  std::string folder = std::string(argc > 2 ? argv[2] : "/dev/shm") + "/snow-bench-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) return 1;
  write_image(folder + "/random", size, true);
  write_image(folder + "/zeros", size, false);
  need(peer::make_authority(folder + "/ca", "bench"));
  const auto member = [&](bool plain) {
    peer::Identity identity;
    identity.host = peer::random_host_id();
    identity.plain = plain;
    if (plain) return need(peer::Credentials::load(identity));
    const std::string own = folder + "/" + identity.host;
    const std::string request = need(peer::make_request(own, identity.host));
    need(write_file(own + "/host.pem",
                    need(peer::sign_request(folder + "/ca", identity.host, request))));
    need(write_file(own + "/ca.pem", need(read_file(folder + "/ca/ca.pem"))));
    return need(peer::Credentials::load(peer::identity_in(own, identity.host)));
  };
  const Bare bare = bare_tcp(size);
  fmt::print("tcp_rtt_p50_us {:.1f}\ntcp_stream_gb_s {:.2f}\n", bare.p50_us,
             bare.bytes_per_s / 1e9);
  through_exchange("plain", folder, size, bare, member(true), member(true));
  through_exchange("tls", folder, size, bare, member(false), member(false));
  remove_all(folder);
}
