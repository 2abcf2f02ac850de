// For tests: a private key in a file, as hosts have one.
#pragma once

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace snow::exchange {

class TestKey {
 public:
  TestKey() {
    char name[] = "/tmp/snow-key-XXXXXX";
    const int fd = ::mkstemp(name);
    EVP_PKEY* key = EVP_EC_gen("P-256");
    FILE* file = ::fdopen(fd, "w");
    PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
    std::fclose(file);
    EVP_PKEY_free(key);
    path_ = name;
  }
  TestKey(const TestKey&) = delete;
  ~TestKey() { ::unlink(path_.c_str()); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace snow::exchange
