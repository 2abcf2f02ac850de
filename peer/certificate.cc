#include "peer/certificate.h"

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include "base/file.h"

namespace snow::peer {
namespace {

constexpr int64_t kDay = 24 * 3600;
constexpr int64_t kCaSeconds = 30 * 365 * kDay;
constexpr int kSerialBits = 127;

using Extension = Openssl<X509_EXTENSION, X509_EXTENSION_free>;
using BigNumber = Openssl<BIGNUM, BN_free>;

tl::unexpected<Error> cannot(std::string_view what) {
  return fail(Code::internal, "cannot {}: {}", what, openssl_error());
}

std::string text_of(BIO* bio) {
  const char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<size_t>(size)};
}

bool set_name(X509_NAME* name, const char* field, const std::string& value) {
  return X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8,
                                    reinterpret_cast<const unsigned char*>(value.c_str()), -1, -1,
                                    0) == 1;
}

bool add_extension(X509* certificate, X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value));
  return extension && X509_add_ext(certificate, extension.get(), -1) == 1;
}

// Version, random serial, key and dates; the caller adds names and extensions and signs.
Result<Certificate> begin_certificate(EVP_PKEY* key, int64_t valid_seconds) {
  Certificate certificate(X509_new());
  const BigNumber serial(BN_new());
  if (!certificate || !serial ||
      BN_rand(serial.get(), kSerialBits, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) != 1 ||
      BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate.get())) == nullptr ||
      X509_set_version(certificate.get(), X509_VERSION_3) != 1 ||
      X509_set_pubkey(certificate.get(), key) != 1 ||
      X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -kDay) == nullptr ||
      X509_gmtime_adj(X509_getm_notAfter(certificate.get()), valid_seconds) == nullptr) {
    return cannot("make a certificate");
  }
  return certificate;
}

template <auto Read, class T>
Result<T> parse(std::string_view pem, const std::string& name, const char* what) {
  if (pem.size() > kMaxPemBytes) return fail(Code::corrupt, "{}: too long for a {}", name, what);
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  // A callback that knows no pass phrase: OpenSSL's own would ask on the terminal.
  const auto no_phrase = [](char*, int, int, void*) { return -1; };
  T object(bio ? Read(bio.get(), nullptr, no_phrase, nullptr) : nullptr);
  if (!object) return fail(Code::corrupt, "{}: not a PEM {}: {}", name, what, openssl_error());
  return object;
}

}  // namespace

Result<Key> make_key() {
  Key key(EVP_EC_gen("P-256"));
  if (!key) return cannot("make a key");
  return key;
}

std::string to_pem(X509* certificate) {
  const Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509(bio.get(), certificate);
  return text_of(bio.get());
}

std::string to_pem(EVP_PKEY* key) {
  const Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr);
  return text_of(bio.get());
}

Result<Certificate> parse_certificate(std::string_view pem, const std::string& name) {
  return parse<PEM_read_bio_X509, Certificate>(pem, name, "certificate");
}

Result<Key> parse_key(std::string_view pem, const std::string& name) {
  return parse<PEM_read_bio_PrivateKey, Key>(pem, name, "key");
}

Result<Certificate> read_certificate(const std::string& file) {
  SNOW_ASSIGN(const std::string pem, read_file(file, kMaxPemBytes));
  return parse_certificate(pem, file);
}

Result<Key> read_key(const std::string& file) {
  SNOW_ASSIGN(std::string pem, read_file(file, kMaxPemBytes));
  auto key = parse_key(pem, file);
  OPENSSL_cleanse(pem.data(), pem.size());
  return key;
}

Result<Certificate> make_ca_certificate(EVP_PKEY* key, const std::string& cluster_name) {
  SNOW_ASSIGN(Certificate ca, begin_certificate(key, kCaSeconds));
  X509_NAME* name = X509_get_subject_name(ca.get());
  // The number tells apart two clusters that were given the same name.
  if (!set_name(name, "O", "Thundersnow cluster") ||
      !set_name(name, "CN", cluster_name + " " + random_hex(4)) ||
      X509_set_issuer_name(ca.get(), name) != 1 ||
      !add_extension(ca.get(), ca.get(), NID_basic_constraints, "critical,CA:TRUE,pathlen:0") ||
      !add_extension(ca.get(), ca.get(), NID_key_usage, "critical,keyCertSign") ||
      !add_extension(ca.get(), ca.get(), NID_subject_key_identifier, "hash") ||
      X509_sign(ca.get(), key, EVP_sha256()) == 0) {
    return cannot("make the CA's certificate");
  }
  return ca;
}

Result<Certificate> make_certificate(EVP_PKEY* host_key, const std::string& host, X509* ca,
                                     EVP_PKEY* ca_key, int64_t valid_seconds) {
  SNOW_ASSIGN(Certificate made, begin_certificate(host_key, valid_seconds));
  if (!set_name(X509_get_subject_name(made.get()), "O", "Thundersnow host") ||
      !set_name(X509_get_subject_name(made.get()), "CN", host) ||
      X509_set_issuer_name(made.get(), X509_get_subject_name(ca)) != 1 ||
      !add_extension(made.get(), ca, NID_basic_constraints, "critical,CA:FALSE") ||
      !add_extension(made.get(), ca, NID_key_usage, "critical,digitalSignature") ||
      !add_extension(made.get(), ca, NID_ext_key_usage, "serverAuth,clientAuth") ||
      !add_extension(made.get(), ca, NID_authority_key_identifier, "keyid") ||
      X509_sign(made.get(), ca_key, EVP_sha256()) == 0) {
    return cannot("make a host's certificate");
  }
  return made;
}

Result<std::string> make_request_pem(EVP_PKEY* key, const std::string& host) {
  const CertificateRequest request(X509_REQ_new());
  if (!request || X509_REQ_set_version(request.get(), X509_REQ_VERSION_1) != 1 ||
      !set_name(X509_REQ_get_subject_name(request.get()), "CN", host) ||
      X509_REQ_set_pubkey(request.get(), key) != 1 ||
      X509_REQ_sign(request.get(), key, EVP_sha256()) == 0) {
    return cannot("make a certificate request");
  }
  const Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509_REQ(bio.get(), request.get());
  return text_of(bio.get());
}

Result<Key> key_of_request(std::string_view pem) {
  SNOW_ASSIGN(const auto request, (parse<PEM_read_bio_X509_REQ, CertificateRequest>(
                                      pem, "certificate request", "request")));
  Key key(X509_REQ_get_pubkey(request.get()));
  char group[64] = "";
  size_t length = 0;
  if (!key || EVP_PKEY_get_base_id(key.get()) != EVP_PKEY_EC ||
      EVP_PKEY_get_group_name(key.get(), group, sizeof group, &length) != 1 ||
      std::string_view(group, length) != SN_X9_62_prime256v1) {
    ERR_clear_error();
    return fail(Code::invalid, "certificate request: its key is not of the kind ECDSA P-256");
  }
  if (X509_REQ_verify(request.get(), key.get()) != 1) {
    ERR_clear_error();
    return fail(Code::denied, "certificate request: its signature is wrong");
  }
  return key;
}

Result<void> check_chain(X509* leaf, X509* ca, const std::string& name) {
  const CertificateStore store(X509_STORE_new());
  const StoreContext context(X509_STORE_CTX_new());
  if (!store || !context || X509_STORE_add_cert(store.get(), ca) != 1 ||
      X509_STORE_CTX_init(context.get(), store.get(), leaf, nullptr) != 1) {
    return cannot("check a certificate");
  }
  X509_STORE_CTX_set_default(context.get(), "ssl_server");
  if (X509_verify_cert(context.get()) == 1) return {};
  const int error = X509_STORE_CTX_get_error(context.get());
  ERR_clear_error();
  return fail(Code::denied, "{}: {}", name, X509_verify_cert_error_string(error));
}

Sha256 certificate_hash(const X509* certificate) {
  Sha256 hash{};
  unsigned length = 0;
  // Fails only for want of memory, and then all zeros are nobody's hash.
  X509_digest(certificate, EVP_sha256(), reinterpret_cast<unsigned char*>(hash.data()), &length);
  return hash;
}

std::string sha256_hex(std::string_view bytes) {
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  EVP_Digest(bytes.data(), bytes.size(), hash, &length, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", hash[i]);
  return hex;
}

Result<std::string> public_key_hash(EVP_PKEY* key) {
  unsigned char* der = nullptr;
  const int size = i2d_PUBKEY(key, &der);
  if (size <= 0) return cannot("read a public key");
  std::string hex = sha256_hex({reinterpret_cast<char*>(der), static_cast<size_t>(size)});
  OPENSSL_free(der);
  return hex;
}

}  // namespace snow::peer
