// POSTs JSON to etcd's gateway: to the endpoint that answered last, and if it does not, to the
// others in turn. Thread-safe; connections are kept and used again.
//
// Errors: Code::unavailable (nobody answered; each endpoint's reason is named), Code::timed_out (a
// request that must not be made twice was sent and not answered: it may have been carried out),
// Code::not_found (a lease that is over), Code::no_room (etcd's space is used up), Code::denied,
// Code::invalid, Code::host_failed (what else etcd refuses).
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"

namespace snow {

struct EtcdOptions {
  std::vector<std::string> endpoints;  // "http://10.0.0.1:2379", "https://..."
  std::string prefix;                  // of all our keys, ends with '/': "/snow/CLUSTER_ID/"
  // PEM files for https: whom to trust, and who we are (etcd's --client-cert-auth). All optional.
  std::string ca_file, cert_file, key_file;
  // For each endpoint. Several calls must fit into a lease (cluster/membership.h).
  int connect_timeout_ms = 1500;  // a lost SYN is sent again after a second
  int timeout_ms = 2500;
};

class EtcdHttp {
 public:
  // Code::invalid: no endpoint, or one that is not an http(s) address.
  static Result<std::unique_ptr<EtcdHttp>> make(EtcdOptions options);
  ~EtcdHttp();
  EtcdHttp(const EtcdHttp&) = delete;
  EtcdHttp& operator=(const EtcdHttp&) = delete;

  enum class Repeat { allowed, forbidden };  // may it be carried out twice?
  // The body of the answer.
  Result<std::string> post(const std::string& path, const std::string& body, Repeat repeat);

 private:
  struct Attempt;

  explicit EtcdHttp(EtcdOptions options) : options_(std::move(options)) {}
  Attempt attempt(const std::string& endpoint, const std::string& path, const std::string& body,
                  Repeat repeat);
  void* take_handle();
  void give_back(void* handle);

  const EtcdOptions options_;
  std::atomic<size_t> last_good_{0};
  std::mutex mutex_;
  std::vector<void*> handles_;  // idle CURL*
};

}  // namespace snow
