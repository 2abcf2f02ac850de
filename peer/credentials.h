// Who this host is to its peers: its id, and the certificates that prove it.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>

#include "base/result.h"
#include "peer/address.h"

// OpenSSL's, without its headers.
struct ssl_ctx_st;

namespace snow::peer {

struct Identity {
  std::string host;                          // id: `h` + 12 hex digits
  std::string cert_file, key_file, ca_file;  // PEM; unused with `plain`
  bool plain = false;                        // no TLS: the peer is whoever it says it is
  bool plain_anywhere = false;               // plain not only when both ends are loopback
};

using Sha256 = std::array<std::byte, 32>;

// Loaded once, shared by a Pool and a Server. Thread-safe: nothing in it changes.
class Credentials {
 public:
  // Reads and checks the files: the key fits the certificate, the certificate is this host's, of
  // the CA, and valid now. Errors name the file.
  static Result<std::shared_ptr<const Credentials>> load(const Identity& identity);
  // For a host that has no certificate yet: it believes only the CA with this hash (of the DER
  // form), and can open service "join" only.
  static Result<std::shared_ptr<const Credentials>> joining(const Sha256& ca_hash);
  ~Credentials();
  Credentials(const Credentials&) = delete;

  [[nodiscard]] const std::string& host() const { return identity_.host; }
  [[nodiscard]] bool plain() const { return identity_.plain; }
  // Code::denied unless a connection without TLS between these is allowed.
  [[nodiscard]] Result<void> check_plain(const Address& local, const Address& remote) const;
  [[nodiscard]] ssl_ctx_st* client_context() const { return client_; }
  [[nodiscard]] ssl_ctx_st* server_context() const { return server_; }

 private:
  Credentials() = default;
  Identity identity_;
  Sha256 ca_hash_{};
  ssl_ctx_st* client_ = nullptr;
  ssl_ctx_st* server_ = nullptr;
};

}  // namespace snow::peer
