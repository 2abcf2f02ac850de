#include "peer/tls.h"

#include <openssl/err.h>
#include <openssl/x509_vfy.h>

#include <algorithm>
#include <cstring>

#include "peer/openssl.h"

namespace snow::peer {
namespace {

constexpr size_t kInBytes = 64 * 1024;
constexpr size_t kRecordBytes = 16 * 1024;  // TLS's limit for one record
constexpr size_t kFlushBytes = 256 * 1024;  // a long frame goes out in writes of this size

bool is_certificate_alert(int reason) {
  switch (reason) {
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      return true;
    default:
      return false;
  }
}

}  // namespace

Tls::Tls(Socket& socket) : socket_(socket), in_(kInBytes) { gather_.reserve(kRecordBytes); }

Tls::~Tls() { SSL_free(ssl_); }

const void* Tls::bio_method() {
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "snow peer");
    BIO_meth_set_read_ex(made, bio_read);
    BIO_meth_set_write_ex(made, bio_write);
    BIO_meth_set_ctrl(made, bio_control);
    return made;  // for as long as the program runs
  }();
  return method;
}

Result<std::unique_ptr<Tls>> Tls::make(ssl_ctx_st* context, bool server, Socket& socket) {
  if (context == nullptr) return fail(Code::internal, "no certificates for this side of TLS");
  std::unique_ptr<Tls> tls(new Tls(socket));
  tls->ssl_ = SSL_new(context);
  BIO* bio = BIO_new(static_cast<const BIO_METHOD*>(bio_method()));
  if (tls->ssl_ == nullptr || bio == nullptr) {
    BIO_free(bio);
    return fail(Code::internal, "cannot set up TLS: {}", openssl_error());
  }
  BIO_set_data(bio, tls.get());
  BIO_set_init(bio, 1);
  SSL_set_bio(tls->ssl_, bio, bio);
  if (server) {
    SSL_set_accept_state(tls->ssl_);
  } else {
    SSL_set_connect_state(tls->ssl_);
  }
  return tls;
}

int Tls::bio_read(bio_st* bio, char* into, size_t size, size_t* got) {
  auto& self = *static_cast<Tls*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  *got = std::min(size, self.in_end_ - self.in_begin_);
  if (*got == 0) {
    BIO_set_retry_read(bio);
    return 0;
  }
  std::memcpy(into, self.in_.data() + self.in_begin_, *got);
  self.in_begin_ += *got;
  return 1;
}

int Tls::bio_write(bio_st* bio, const char* data, size_t size, size_t* put) {
  auto& self = *static_cast<Tls*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  auto& out = self.reading_ ? self.aside_ : self.out_;
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  out.insert(out.end(), bytes, bytes + size);
  *put = size;
  return 1;
}

long Tls::bio_control(bio_st* /*bio*/, int command, long /*number*/, void* /*pointer*/) {
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

std::unique_lock<std::mutex> Tls::guard() const {
  std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
  if (duplex_) lock.lock();
  return lock;
}

Result<void> Tls::fill(const Deadline& deadline) {
  // OpenSSL asks for more only when it has taken all of it.
  in_begin_ = in_end_ = 0;
  SNOW_ASSIGN(in_end_, socket_.read_some(in_, deadline));
  return {};
}

Result<void> Tls::flush(const Deadline& deadline) {
  iovec part{out_.data(), out_.size()};
  auto sent = socket_.write_all({&part, 1}, deadline);
  out_.clear();
  return sent;
}

void Tls::send_alert() {
  // So that the other side can say why. It is lost if it does not fit at once.
  out_.insert(out_.end(), aside_.begin(), aside_.end());
  aside_.clear();
  if (!out_.empty()) (void)flush(Deadline(0));
}

Result<void> Tls::handshake(const Deadline& deadline) {
  for (;;) {
    ERR_clear_error();
    const int done = SSL_do_handshake(ssl_);
    const int error = done == 1 ? SSL_ERROR_NONE : SSL_get_error(ssl_, done);
    if (done == 1 || error == SSL_ERROR_WANT_READ) {
      if (!out_.empty()) SNOW_TRY(flush(deadline));
      if (done == 1) return {};
      SNOW_TRY(fill(deadline));
      continue;
    }
    auto failed = explain(error);
    send_alert();
    return failed;
  }
}

std::string Tls::peer_name() const {
  const Certificate certificate(SSL_get1_peer_certificate(ssl_));
  if (!certificate || SSL_get_verify_result(ssl_) != X509_V_OK) return {};
  return common_name(certificate.get());
}

Result<size_t> Tls::read_some(std::span<std::byte> into, const Deadline& deadline) {
  for (;;) {
    {
      const auto lock = guard();
      ERR_clear_error();
      size_t got = 0;
      reading_ = true;
      const int done = SSL_read_ex(ssl_, into.data(), into.size(), &got);
      reading_ = false;
      if (done == 1) return got;
      const int error = SSL_get_error(ssl_, done);
      if (error != SSL_ERROR_WANT_READ) {
        auto failed = explain(error);
        if (!duplex_) send_alert();
        return failed;
      }
    }
    SNOW_TRY(fill(deadline));
  }
}

Result<void> Tls::encrypt(std::span<const std::byte> data, const Deadline& deadline) {
  while (!data.empty()) {
    const auto record = data.first(std::min(data.size(), kRecordBytes));
    {
      const auto lock = guard();
      out_.insert(out_.end(), aside_.begin(), aside_.end());
      aside_.clear();
      ERR_clear_error();
      size_t put = 0;
      const int done = SSL_write_ex(ssl_, record.data(), record.size(), &put);
      if (done != 1) return explain(SSL_get_error(ssl_, done));
      data = data.subspan(put);
    }
    if (out_.size() >= kFlushBytes) SNOW_TRY(flush(deadline));
  }
  return {};
}

Result<void> Tls::write_all(std::span<const std::span<const std::byte>> parts,
                            const Deadline& deadline) {
  gather_.clear();
  for (auto part : parts) {
    while (!part.empty()) {
      if (gather_.empty() && part.size() >= kRecordBytes) {
        const size_t whole = part.size() / kRecordBytes * kRecordBytes;
        SNOW_TRY(encrypt(part.first(whole), deadline));
        part = part.subspan(whole);
        continue;
      }
      const auto some = part.first(std::min(part.size(), kRecordBytes - gather_.size()));
      gather_.insert(gather_.end(), some.begin(), some.end());
      part = part.subspan(some.size());
      if (gather_.size() == kRecordBytes) {
        SNOW_TRY(encrypt(gather_, deadline));
        gather_.clear();
      }
    }
  }
  SNOW_TRY(encrypt(gather_, deadline));
  return out_.empty() ? Result<void>{} : flush(deadline);
}

bool Tls::established() const { return SSL_is_init_finished(ssl_) == 1; }

bool Tls::idle() const {
  const auto lock = guard();
  return in_begin_ == in_end_ && SSL_has_pending(ssl_) == 0;
}

tl::unexpected<Error> Tls::explain(int ssl_error) {
  if (ssl_error == SSL_ERROR_ZERO_RETURN) {
    return fail(Code::unavailable, "the other side closed the connection");
  }
  const long verified = SSL_get_verify_result(ssl_);
  const int reason = ERR_GET_REASON(ERR_peek_error());
  const std::string text = openssl_error();
  if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED) {
    return fail(Code::denied, "its certificate is refused ({}); is it a host of this cluster?",
                X509_verify_cert_error_string(verified));
  }
  if (is_certificate_alert(reason)) {
    return fail(Code::denied, "it refuses this host's certificate ({}); is it of this cluster?",
                text);
  }
  if (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_HTTP_REQUEST) {
    peer_speaks_tls_ = false;
    return fail(Code::corrupt, "it does not speak TLS; is it set to plain, or another program?");
  }
  return fail(Code::corrupt, "TLS failed: {}", text);
}

}  // namespace snow::peer
