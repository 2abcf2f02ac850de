#include "peer/credentials.h"

#include <openssl/err.h>
#include <openssl/x509_vfy.h>

#include "peer/certificate.h"
#include "peer/frame.h"

namespace snow::peer {
namespace {

Result<SslCtx> make_context() {
  SslCtx context(SSL_CTX_new(TLS_method()));
  if (!context) return fail(Code::internal, "cannot set up TLS: {}", openssl_error());
  SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION);
  SSL_CTX_set_max_proto_version(context.get(), TLS1_3_VERSION);
  SSL_CTX_set_ciphersuites(context.get(),
                           "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
                           "TLS_CHACHA20_POLY1305_SHA256");
  // Connections live in pools for long: resumption would buy nothing.
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context.get(), 0);
  return context;
}

// For a joining host: the CA is whichever certificate of the presented chain has the hash that the
// token tells; the server's own must be signed by it.
int verify_by_hash(X509_STORE_CTX* context, void* argument) {
  const auto& wanted = *static_cast<const Sha256*>(argument);
  X509* leaf = X509_STORE_CTX_get0_cert(context);
  STACK_OF(X509)* chain = X509_STORE_CTX_get0_untrusted(context);
  for (int i = 0; leaf != nullptr && i < sk_X509_num(chain); ++i) {
    X509* candidate = sk_X509_value(chain, i);
    if (certificate_hash(candidate) != wanted) continue;
    if (check_chain(leaf, candidate, "server")) {
      X509_STORE_CTX_set_error(context, X509_V_OK);
      return 1;
    }
  }
  X509_STORE_CTX_set_error(context, X509_V_ERR_CERT_UNTRUSTED);
  return 0;
}

Result<SslCtx> make_member_context(X509* certificate, EVP_PKEY* key, X509* ca) {
  SNOW_ASSIGN(SslCtx context, make_context());
  // The CA goes along so that a joining host can compare it with the hash in its token.
  if (SSL_CTX_use_certificate(context.get(), certificate) != 1 ||
      SSL_CTX_use_PrivateKey(context.get(), key) != 1 ||
      SSL_CTX_add1_chain_cert(context.get(), ca) != 1 ||
      X509_STORE_add_cert(SSL_CTX_get_cert_store(context.get()), ca) != 1) {
    return fail(Code::internal, "cannot set up TLS: {}", openssl_error());
  }
  // As a server too, a peer without certificate gets through the handshake: it may want to join.
  // Connection refuses it any other service.
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  return context;
}

}  // namespace

Result<std::shared_ptr<const Credentials>> Credentials::load(const Identity& identity) {
  if (!is_plain_name(identity.host)) {
    return fail(Code::invalid, "host id '{}': not 1 to {} letters, digits, '.', '_', '-'",
                identity.host, kMaxNameBytes);
  }
  std::shared_ptr<Credentials> credentials(new Credentials);
  credentials->identity_ = identity;
  if (identity.plain) return credentials;
  SNOW_ASSIGN(const Certificate certificate, read_certificate(identity.cert_file));
  SNOW_ASSIGN(const Key key, read_key(identity.key_file));
  SNOW_ASSIGN(const Certificate ca, read_certificate(identity.ca_file));
  if (common_name(certificate.get()) != identity.host) {
    return fail(Code::invalid, "{}: is the certificate of host '{}', this host is '{}'",
                identity.cert_file, common_name(certificate.get()), identity.host);
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    ERR_clear_error();
    return fail(Code::invalid, "{}: does not fit the certificate {}", identity.key_file,
                identity.cert_file);
  }
  SNOW_TRY(check_chain(certificate.get(), ca.get(), identity.cert_file));
  SNOW_ASSIGN(SslCtx client, make_member_context(certificate.get(), key.get(), ca.get()));
  SNOW_ASSIGN(SslCtx server, make_member_context(certificate.get(), key.get(), ca.get()));
  credentials->client_ = client.release();
  credentials->server_ = server.release();
  return credentials;
}

Result<std::shared_ptr<const Credentials>> Credentials::joining(const Sha256& ca_hash) {
  std::shared_ptr<Credentials> credentials(new Credentials);
  credentials->ca_hash_ = ca_hash;
  SNOW_ASSIGN(SslCtx client, make_context());
  SSL_CTX_set_verify(client.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_cert_verify_callback(client.get(), verify_by_hash, &credentials->ca_hash_);
  credentials->client_ = client.release();
  return credentials;
}

Credentials::~Credentials() {
  SSL_CTX_free(client_);
  SSL_CTX_free(server_);
}

Result<void> Credentials::check_plain(const Address& local, const Address& remote) const {
  if (identity_.plain_anywhere || (is_loopback(local) && is_loopback(remote))) return {};
  return fail(Code::denied,
              "a connection without TLS between {} and {}: only loopback may do that; use "
              "certificates, or allow it explicitly",
              local.ip, remote.ip);
}

}  // namespace snow::peer
