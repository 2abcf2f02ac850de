#include "peer/server.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <system_error>

#include "base/log.h"

namespace snow::peer {

Server::Server(std::shared_ptr<const Credentials> us, Options options)
    : us_(std::move(us)), options_(std::move(options)) {}

Server::~Server() { stop(); }

void Server::add(std::string name, Service service, Open open) {
  services_.insert_or_assign(std::move(name), Entry{std::move(service), open});
}

Result<void> Server::start(const Address& address) {
  if (us_->plain()) SNOW_TRY(us_->check_plain(address, address));
  SNOW_ASSIGN(listener_, listen_tcp(address));
  SocketAddress bound;
  bound.length = sizeof bound.storage;
  if (::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&bound.storage), &bound.length) <
      0) {
    return fail_errno(Code::host_failed, "{}: getsockname", to_text(address));
  }
  address_ = from_socket_address(bound.storage);
  acceptor_ = std::thread([this] { accept_loop(); });
  return {};
}

void Server::accept_loop() {
  for (;;) {
    Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const int error = errno;
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    reap();
    if (fd) {
      admit(std::move(fd));
    } else if (error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS) {
      // The next attempt would fail at once, too: let some connections end first.
      log_warn("peer: cannot accept a connection: {}", strerror(error));
      std::unique_lock lock(mutex_);
      ended_.wait_for(lock, std::chrono::milliseconds(100));
    }
  }
}

void Server::admit(Fd fd) {
  const std::lock_guard lock(mutex_);
  if (handshakes_ >= options_.handshakes) drop_oldest_handshake();
  // Beyond this even those that are on their way out are too many: it is closed without a word.
  if (sessions_.size() >= options_.connections + 2 * options_.handshakes) return;
  ++handshakes_;
  const auto session = sessions_.emplace(sessions_.end());
  session->connection.reset(new Connection(std::move(fd)));
  try {
    session->thread = std::thread([this, session] { run(session); });
  } catch (const std::system_error& error) {
    log_warn("peer: cannot start a thread for a connection: {}", error.what());
    no_longer_waits(*session);
    sessions_.erase(session);
  }
}

void Server::drop_oldest_handshake() {
  const auto oldest = std::find_if(sessions_.begin(), sessions_.end(),
                                   [](const Session& session) { return session.waiting; });
  if (oldest == sessions_.end()) return;
  oldest->connection->interrupt();
  no_longer_waits(*oldest);
}

void Server::no_longer_waits(Session& session) {
  if (session.waiting) --handshakes_;
  session.waiting = false;
}

void Server::run(Sessions::iterator session) {
  Connection& connection = *session->connection;
  const Deadline deadline(options_.hello_ms);
  const auto greeted = Connection::greet(connection, *us_, deadline);
  const auto entry = greeted ? check(session) : tl::unexpected<Error>(greeted.error());
  if (!entry) {
    log_debug("peer: refused: {}", entry.error().message);
    connection.refuse(entry.error());
  } else if (connection.welcome(*us_, deadline)) {
    (*entry)->service(connection);
  }
  Sessions before;  // ended earlier: nobody else may come by to join their threads
  {
    const std::lock_guard lock(mutex_);
    no_longer_waits(*session);
    session->connection.reset();
    before.swap(finished_);
    finished_.splice(finished_.end(), sessions_, session);
    ended_.notify_all();
  }
  for (Session& other : before) other.thread.join();
}

Result<const Server::Entry*> Server::check(Sessions::iterator session) {
  const Connection& connection = *session->connection;
  const auto found = services_.find(connection.service());
  if (found == services_.end()) {
    return fail(Code::not_found, "service '{}': this host has no such service",
                connection.service());
  }
  if (!connection.authenticated() && found->second.open != Open::to_all) {
    return fail(Code::denied, "service '{}': only for hosts with a certificate of this cluster",
                connection.service());
  }
  if (connection.authenticated() && options_.admission) {
    SNOW_TRY(options_.admission(connection.host(), connection.service()));
  }
  const std::lock_guard lock(mutex_);
  size_t in_all = 0;
  size_t of_host = 0;
  for (const Session& other : sessions_) {
    in_all += other.greeted ? 1 : 0;
    of_host += other.greeted && other.host == connection.host() ? 1 : 0;
  }
  if (in_all >= options_.connections || of_host >= options_.connections_per_host) {
    return fail(Code::no_room, "{} connections, {} of them from host '{}': the limit is reached",
                in_all, of_host, connection.host());
  }
  // From now on it is counted as a connection, not as one of those that said nothing yet.
  session->host = connection.host();
  session->greeted = true;
  no_longer_waits(*session);
  return &found->second;
}

void Server::reap() {
  Sessions finished;
  {
    const std::lock_guard lock(mutex_);
    finished.swap(finished_);
  }
  for (Session& session : finished) session.thread.join();
}

void Server::stop() {
  {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    if (listener_) ::shutdown(listener_.get(), SHUT_RDWR);
  }
  if (acceptor_.joinable()) acceptor_.join();
  {
    std::unique_lock lock(mutex_);
    for (Session& session : sessions_) session.connection->interrupt();
    ended_.wait(lock, [&] { return sessions_.empty(); });
  }
  reap();
  listener_.reset();
}

void Server::forget(const std::string& host) {
  const std::lock_guard lock(mutex_);
  for (Session& session : sessions_) {
    if (session.greeted && session.host == host) session.connection->interrupt();
  }
}

size_t Server::connections() const {
  const std::lock_guard lock(mutex_);
  return sessions_.size();
}

}  // namespace snow::peer
