// TLS 1.3 between a Socket and its user. OpenSSL never touches the socket: it reads and writes
// buffers here, and this class moves them. So every wait has our deadline, a frame is one write
// however many records it is, and OpenSSL's lock below is never held while the network is waited
// for.
//
// One thread at a time; after `allow_duplex`, one that reads and one that writes.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "peer/socket.h"

struct ssl_ctx_st;
struct ssl_st;
struct bio_st;

namespace snow::peer {

class Tls {
 public:
  // `socket` outlives it.
  static Result<std::unique_ptr<Tls>> make(ssl_ctx_st* context, bool server, Socket& socket);
  ~Tls();
  Tls(const Tls&) = delete;

  Result<void> handshake(const Deadline& deadline);
  // From the peer's verified certificate; empty if it showed none. After the handshake.
  [[nodiscard]] std::string peer_name() const;

  Result<size_t> read_some(std::span<std::byte> into, const Deadline& deadline);
  Result<void> write_all(std::span<const std::span<const std::byte>> parts,
                         const Deadline& deadline);
  [[nodiscard]] bool established() const;
  // False once the peer's first bytes were found to be no TLS at all.
  [[nodiscard]] bool peer_speaks_tls() const { return peer_speaks_tls_; }
  [[nodiscard]] bool idle() const;  // nothing decrypted or undecrypted is waiting
  void allow_duplex() { duplex_ = true; }

 private:
  explicit Tls(Socket& socket);
  static int bio_read(bio_st* bio, char* into, size_t size, size_t* got);
  static int bio_write(bio_st* bio, const char* data, size_t size, size_t* put);
  static long bio_control(bio_st* bio, int command, long number, void* pointer);
  static const void* bio_method();

  std::unique_lock<std::mutex> guard() const;
  Result<void> fill(const Deadline& deadline);
  Result<void> flush(const Deadline& deadline);
  Result<void> encrypt(std::span<const std::byte> data, const Deadline& deadline);
  void send_alert();
  tl::unexpected<Error> explain(int ssl_error);

  Socket& socket_;
  ssl_st* ssl_ = nullptr;
  bool duplex_ = false;
  bool peer_speaks_tls_ = true;
  mutable std::mutex mutex_;  // OpenSSL's object; taken only with duplex_, never across I/O

  // Ciphertext that came and OpenSSL has not read yet. The reader's.
  std::vector<std::byte> in_;
  size_t in_begin_ = 0, in_end_ = 0;
  // Ciphertext to be sent. The writer's; what OpenSSL says on its own while it reads (an alert, a
  // key update) is kept aside and goes out before the writer's next record, in the right order.
  std::vector<std::byte> out_, aside_;
  bool reading_ = false;
  std::vector<std::byte> gather_;  // small parts of a frame, so that they make one record
};

}  // namespace snow::peer
