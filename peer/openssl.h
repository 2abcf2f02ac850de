// OpenSSL's objects that free themselves, and its errors as text. The component's own.
#pragma once

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

namespace snow::peer {

template <auto Free>
struct OpensslFree {
  template <class T>
  void operator()(T* object) const {
    Free(object);
  }
};
template <class T, auto Free>
using Openssl = std::unique_ptr<T, OpensslFree<Free>>;

using SslCtx = Openssl<SSL_CTX, SSL_CTX_free>;
using Ssl = Openssl<SSL, SSL_free>;
using Bio = Openssl<BIO, BIO_free>;
using Certificate = Openssl<X509, X509_free>;
using CertificateRequest = Openssl<X509_REQ, X509_REQ_free>;
using CertificateStore = Openssl<X509_STORE, X509_STORE_free>;
using StoreContext = Openssl<X509_STORE_CTX, X509_STORE_CTX_free>;
using Key = Openssl<EVP_PKEY, EVP_PKEY_free>;

// This thread's oldest queued error as text, and the queue emptied.
std::string openssl_error();

// The subject's common name; empty if there is none or it has a zero byte in it.
std::string common_name(const X509* certificate);

}  // namespace snow::peer
