// Keys, requests and certificates, by OpenSSL. The component's own: authority.h is for others.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "peer/credentials.h"
#include "peer/openssl.h"

namespace snow::peer {

inline constexpr size_t kMaxPemBytes = 64 * 1024;

Result<Key> make_key();  // ECDSA P-256

// PEM both ways. `name` is what the error calls it. Of several objects in a text the first.
std::string to_pem(X509* certificate);
std::string to_pem(EVP_PKEY* key);
Result<Certificate> parse_certificate(std::string_view pem, const std::string& name);
Result<Key> parse_key(std::string_view pem, const std::string& name);
Result<Certificate> read_certificate(const std::string& file);
Result<Key> read_key(const std::string& file);

// Self-signed, for signing hosts' certificates only.
Result<Certificate> make_ca_certificate(EVP_PKEY* key, const std::string& cluster_name);
// For both ends of TLS, signed by the CA.
Result<Certificate> make_certificate(EVP_PKEY* host_key, const std::string& host, X509* ca,
                                     EVP_PKEY* ca_key, int64_t valid_seconds);

Result<std::string> make_request_pem(EVP_PKEY* key, const std::string& host);
// The request's public key, once its signature and kind are checked.
Result<Key> key_of_request(std::string_view pem);

// Is `leaf` signed by `ca`, valid now, and fit for a TLS server? Code::denied otherwise.
Result<void> check_chain(X509* leaf, X509* ca, const std::string& name);

Sha256 certificate_hash(const X509* certificate);  // of the DER form
std::string sha256_hex(std::string_view bytes);
Result<std::string> public_key_hash(EVP_PKEY* key);  // hex SHA-256 of the DER form

}  // namespace snow::peer
