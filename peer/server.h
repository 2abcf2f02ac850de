// Listens for other daemons. A thread for each connection: TLS, hello, then the service that the
// peer named, until that returns. Thread-safe after `start`.
//
// Bounds: a peer that says nothing is cut off after `hello_ms`, and when `handshakes` of them wait
// the oldest has to go, so that they cannot keep others out. Connections that have said hello are
// limited for each host and in all; one too many is told so (Code::no_room).
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "peer/connection.h"
#include "peer/credentials.h"

namespace snow::peer {

class Server {
 public:
  // Runs in the connection's thread until it returns; then the connection is closed. May be called
  // by many threads. Ends soon once the connection fails: `stop` interrupts it and waits.
  using Service = std::function<void(Connection&)>;
  // May this host come in? Asked after its certificate was found good; an error is what it is told.
  using Admission =
      std::function<Result<void>(const std::string& host, const std::string& service)>;
  struct Options {
    int hello_ms = 5'000;
    size_t handshakes = 128;
    size_t connections = 2'048;
    size_t connections_per_host = 256;
    Admission admission = {};
  };
  enum class Open { to_members, to_all };  // to_all: also to a peer without certificate

  explicit Server(std::shared_ptr<const Credentials> us) : Server(std::move(us), Options{}) {}
  Server(std::shared_ptr<const Credentials> us, Options options);
  ~Server();  // stops
  Server(const Server&) = delete;

  void add(std::string name, Service service, Open open = Open::to_members);  // before start
  // Port 0: the kernel chooses one. With plain credentials only on loopback, unless they allow it
  // anywhere (Code::denied).
  Result<void> start(const Address& address);
  [[nodiscard]] Address address() const { return address_; }  // after start
  // No new connections, all interrupted, all threads ended when it returns.
  void stop();
  // Interrupts the connections of this host: it was removed from the cluster.
  void forget(const std::string& host);

  [[nodiscard]] size_t connections() const;  // those in handshake too

 private:
  struct Session {
    std::unique_ptr<Connection> connection;
    std::string host;      // set when it has said hello
    bool greeted = false;  // false: only TLS and hello so far, or refused
    bool waiting = true;   // counted in handshakes_
    std::thread thread;
  };
  using Sessions = std::list<Session>;
  struct Entry {
    Service service;
    Open open;
  };

  void accept_loop();
  void admit(Fd fd);
  void run(Sessions::iterator session);
  Result<const Entry*> check(Sessions::iterator session);
  void drop_oldest_handshake();            // with mutex_ held
  void no_longer_waits(Session& session);  // with mutex_ held
  void reap();

  const std::shared_ptr<const Credentials> us_;
  const Options options_;
  std::map<std::string, Entry> services_;
  Fd listener_;
  Address address_;
  std::thread acceptor_;
  mutable std::mutex mutex_;  // of all below
  bool stopping_ = false;
  Sessions sessions_, finished_;
  std::condition_variable ended_;  // a session went to finished_
  size_t handshakes_ = 0;
};

}  // namespace snow::peer
