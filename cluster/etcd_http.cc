#include "cluster/etcd_http.h"

#include <curl/curl.h>

#include "cluster/etcd_messages.h"

namespace snow {
namespace {

constexpr size_t kMaxAnswerBytes = size_t{128} << 20;  // a page of a list, values of 64 KiB
constexpr size_t kMaxIdleHandles = 8;

size_t on_write(char* data, size_t one, size_t count, void* into) {
  auto& body = *static_cast<std::string*>(into);
  if (body.size() + one * count > kMaxAnswerBytes) return 0;
  body.append(data, one * count);
  return one * count;
}

Result<void> check_endpoint(const std::string& endpoint) {
  CURLU* url = curl_url();
  char* part = nullptr;
  bool good = curl_url_set(url, CURLUPART_URL, endpoint.c_str(), 0) == CURLUE_OK &&
              curl_url_get(url, CURLUPART_SCHEME, &part, 0) == CURLUE_OK &&
              (std::string_view(part) == "http" || std::string_view(part) == "https");
  curl_free(part);
  part = nullptr;
  good = good && curl_url_get(url, CURLUPART_PATH, &part, 0) == CURLUE_OK &&
         std::string_view(part) == "/" && endpoint.back() != '/';
  curl_free(part);
  curl_url_cleanup(url);
  if (good) return {};
  return fail(Code::invalid, "etcd endpoint '{}': not an address like http://10.0.0.1:2379",
              endpoint);
}

}  // namespace

// How a request to one endpoint ended.
struct EtcdHttp::Attempt {
  enum Kind { answered, not_sent, unknown, refused } kind = not_sent;
  std::string body;
  Error error;  // for all but answered
};

namespace {

// What etcd says with a status of 400 or more. `elsewhere`: another endpoint may do better.
Error error_of(long status, const std::string& text, bool& elsewhere) {
  elsewhere = false;
  const auto says = [&](Code code) { return Error{code, "etcd: " + text}; };
  if (text.empty()) {
    elsewhere = true;
    return Error{Code::unavailable,
                 fmt::format("is not an etcd with the v3 API (HTTP status {})", status)};
  }
  if (status >= 500) {
    elsewhere = true;
    return says(Code::unavailable);
  }
  if (text.find("space exceeded") != std::string::npos) {
    return Error{Code::no_room,
                 fmt::format("etcd: {}; compact and defragment it, then `etcdctl alarm disarm`; "
                             "start it with --auto-compaction-retention=1h",
                             text)};
  }
  if (status == 404) return says(Code::not_found);
  if (status == 401 || status == 403) return says(Code::denied);
  if (status == 400) return says(Code::invalid);
  return says(Code::host_failed);
}

// Whether curl failed before the request could have left.
bool never_sent(CURL* curl, CURLcode result) {
  if (result == CURLE_COULDNT_CONNECT || result == CURLE_COULDNT_RESOLVE_HOST ||
      result == CURLE_SSL_CONNECT_ERROR || result == CURLE_PEER_FAILED_VERIFICATION ||
      result == CURLE_SSL_CERTPROBLEM || result == CURLE_SSL_CACERT_BADFILE) {
    return true;
  }
  curl_off_t before_request_us = 0;
  curl_easy_getinfo(curl, CURLINFO_PRETRANSFER_TIME_T, &before_request_us);
  return before_request_us == 0;
}

}  // namespace

Result<std::unique_ptr<EtcdHttp>> EtcdHttp::make(EtcdOptions options) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  if (options.endpoints.empty()) return fail(Code::invalid, "etcd: no endpoint is given");
  for (const auto& endpoint : options.endpoints) SNOW_TRY(check_endpoint(endpoint));
  return std::unique_ptr<EtcdHttp>(new EtcdHttp(std::move(options)));
}

EtcdHttp::~EtcdHttp() {
  for (void* handle : handles_) curl_easy_cleanup(handle);
}

void* EtcdHttp::take_handle() {
  const std::lock_guard lock(mutex_);
  if (handles_.empty()) return curl_easy_init();
  void* handle = handles_.back();
  handles_.pop_back();
  return handle;
}

void EtcdHttp::give_back(void* handle) {
  const std::lock_guard lock(mutex_);
  if (handles_.size() < kMaxIdleHandles) {
    handles_.push_back(handle);
  } else {
    curl_easy_cleanup(handle);
  }
}

EtcdHttp::Attempt EtcdHttp::attempt(const std::string& endpoint, const std::string& path,
                                    const std::string& body, Repeat repeat) {
  CURL* curl = take_handle();
  Attempt attempt;
  curl_easy_reset(curl);  // options only: its connections stay
  const auto set = [&](CURLoption option, auto value) { curl_easy_setopt(curl, option, value); };
  curl_slist* headers = curl_slist_append(nullptr, "Content-Type: application/json");
  headers = curl_slist_append(headers, "Expect:");
  char reason[CURL_ERROR_SIZE] = {};
  set(CURLOPT_URL, (endpoint + path).c_str());
  set(CURLOPT_PROXY, "");
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_HTTPHEADER, headers);
  set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  set(CURLOPT_POSTFIELDS, body.c_str());
  set(CURLOPT_WRITEFUNCTION, &on_write);
  set(CURLOPT_WRITEDATA, &attempt.body);
  set(CURLOPT_ERRORBUFFER, reason);
  set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options_.connect_timeout_ms));
  set(CURLOPT_TIMEOUT_MS, static_cast<long>(options_.timeout_ms));
  // curl sends a request again by itself when a kept connection turns out to be dead.
  if (repeat == Repeat::forbidden) set(CURLOPT_FRESH_CONNECT, 1L);
  if (!options_.ca_file.empty()) set(CURLOPT_CAINFO, options_.ca_file.c_str());
  if (!options_.cert_file.empty()) set(CURLOPT_SSLCERT, options_.cert_file.c_str());
  if (!options_.key_file.empty()) set(CURLOPT_SSLKEY, options_.key_file.c_str());

  const CURLcode result = curl_easy_perform(curl);
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  if (result != CURLE_OK) {
    attempt.kind = never_sent(curl, result) ? Attempt::not_sent : Attempt::unknown;
    attempt.error = {Code::unavailable, reason[0] != 0 ? reason : curl_easy_strerror(result)};
  } else if (status == 200) {
    attempt.kind = Attempt::answered;
  } else {
    bool elsewhere = false;
    attempt.error = error_of(status, parse_etcd_error(attempt.body), elsewhere);
    attempt.kind = !elsewhere      ? Attempt::refused
                   : status >= 500 ? Attempt::unknown
                                   : Attempt::not_sent;
    // The one failure of a server of which it is known that nothing was done.
    if (attempt.error.message.find("no leader") != std::string::npos) {
      attempt.kind = Attempt::not_sent;
    }
  }
  curl_slist_free_all(headers);
  give_back(curl);
  return attempt;
}

Result<std::string> EtcdHttp::post(const std::string& path, const std::string& body,
                                   Repeat repeat) {
  std::string reasons;
  const size_t first = last_good_.load();
  for (size_t i = 0; i < options_.endpoints.size(); ++i) {
    const size_t which = (first + i) % options_.endpoints.size();
    const std::string& endpoint = options_.endpoints[which];
    Attempt tried = attempt(endpoint, path, body, repeat);
    if (tried.kind == Attempt::answered || tried.kind == Attempt::refused) {
      last_good_.store(which);
      if (tried.kind == Attempt::answered) return std::move(tried.body);
      return tl::unexpected<Error>(std::move(tried.error));
    }
    if (tried.kind == Attempt::unknown && repeat == Repeat::forbidden) {
      last_good_.store((which + 1) % options_.endpoints.size());
      return fail(Code::timed_out,
                  "etcd at {} broke off while it was asked for a change ({}): it may or may not "
                  "have been made",
                  endpoint, tried.error.message);
    }
    reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", endpoint, tried.error.message);
  }
  return fail(Code::unavailable,
              "no etcd answers ({}); start it, or mend the setting of its endpoints", reasons);
}

}  // namespace snow
