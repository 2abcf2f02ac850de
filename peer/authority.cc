#include "peer/authority.h"

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/names.h"
#include "peer/certificate.h"

namespace snow::peer {
namespace {

constexpr int64_t kHostSeconds = int64_t{10} * 365 * 24 * 3600;
constexpr unsigned kSecret = 0600;

struct Authority {
  Certificate certificate;
  Key key;
};

Result<Authority> open_authority(const std::string& folder) {
  Authority authority;
  auto key = read_key(folder + "/ca-key.pem");
  if (!key && key.error().code == Code::not_found) {
    return fail(Code::wrong_state,
                "{}: has no CA key; certificates are made on the host that made the cluster",
                folder);
  }
  if (!key) return tl::unexpected<Error>(std::move(key).error());
  authority.key = *std::move(key);
  SNOW_ASSIGN(authority.certificate, read_certificate(folder + "/ca.pem"));
  return authority;
}

Result<Key> own_key(const std::string& folder) {
  const std::string file = folder + "/host-key.pem";
  auto known = read_key(file);
  if (known || known.error().code != Code::not_found) return known;
  SNOW_ASSIGN(Key key, make_key());
  SNOW_TRY(make_folders(folder, 0700));
  SNOW_TRY(write_file(file, to_pem(key.get()), kSecret));
  return key;
}

Result<void> check_host_id(const std::string& host) {
  if (is_host_id(host)) return {};
  return fail(Code::invalid, "host id '{}': not 'h' and 12 hex digits", host);
}

// issued.json: host id -> hash of the public key that it was certified with.
Result<void> record_issue(const std::string& folder, const std::string& host,
                          const std::string& key_hash) {
  const std::string file = folder + "/issued.json";
  nlohmann::json issued = nlohmann::json::object();
  if (auto text = read_file(file)) {
    issued = nlohmann::json::parse(*text, nullptr, false);
    if (!issued.is_object()) return fail(Code::corrupt, "{}: not a JSON object", file);
  } else if (text.error().code != Code::not_found) {
    return tl::unexpected<Error>(std::move(text).error());
  }
  const auto known = issued.find(host);
  if (known == issued.end()) {
    issued[host] = key_hash;
    return write_file(file, issued.dump(1) + "\n", kSecret);
  }
  if (*known == key_hash) return {};
  return fail(Code::exists, "host id '{}': belongs to another host of this cluster", host);
}

}  // namespace

Result<void> make_authority(const std::string& folder, const std::string& cluster_name) {
  SNOW_TRY(check_name("cluster", cluster_name));
  if (read_certificate(folder + "/ca.pem")) {
    return fail(Code::exists, "{}: there is a cluster's CA already", folder);
  }
  SNOW_ASSIGN(const Key key, make_key());
  SNOW_ASSIGN(const Certificate ca, make_ca_certificate(key.get(), cluster_name));
  SNOW_TRY(make_folders(folder, 0700));
  SNOW_TRY(write_file(folder + "/ca-key.pem", to_pem(key.get()), kSecret));
  return write_file(folder + "/ca.pem", to_pem(ca.get()), kSecret);
}

Result<void> make_host_certificate(const std::string& folder, const std::string& host) {
  return make_host_certificate(folder, host, kHostSeconds);
}

Result<void> make_host_certificate(const std::string& folder, const std::string& host,
                                   int64_t valid_seconds) {
  SNOW_TRY(check_host_id(host));
  SNOW_ASSIGN(const Authority authority, open_authority(folder));
  SNOW_ASSIGN(const Key key, own_key(folder));
  SNOW_ASSIGN(const std::string key_hash, public_key_hash(key.get()));
  SNOW_TRY(record_issue(folder, host, key_hash));
  SNOW_ASSIGN(const Certificate made, make_certificate(key.get(), host, authority.certificate.get(),
                                                       authority.key.get(), valid_seconds));
  return write_file(folder + "/host.pem", to_pem(made.get()), kSecret);
}

Identity identity_in(const std::string& folder, const std::string& host) {
  Identity identity;
  identity.host = host;
  identity.cert_file = folder + "/host.pem";
  identity.key_file = folder + "/host-key.pem";
  identity.ca_file = folder + "/ca.pem";
  return identity;
}

std::string random_host_id() { return "h" + random_hex(6); }

bool is_host_id(std::string_view text) {
  return text.size() == 13 && text[0] == 'h' &&
         std::all_of(text.begin() + 1, text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

Result<Sha256> authority_hash(const std::string& folder) {
  SNOW_ASSIGN(const Certificate ca, read_certificate(folder + "/ca.pem"));
  return certificate_hash(ca.get());
}

Result<std::string> make_request(const std::string& folder, const std::string& host) {
  SNOW_TRY(check_host_id(host));
  SNOW_ASSIGN(const Key key, own_key(folder));
  return make_request_pem(key.get(), host);
}

Result<std::string> sign_request(const std::string& folder, const std::string& host,
                                 std::string_view request_pem) {
  SNOW_TRY(check_host_id(host));
  SNOW_ASSIGN(const Key key, key_of_request(request_pem));
  SNOW_ASSIGN(const std::string key_hash, public_key_hash(key.get()));
  SNOW_ASSIGN(const Authority authority, open_authority(folder));
  {
    static std::mutex issuing;  // of issued.json, whose folder one daemon has
    const std::lock_guard lock(issuing);
    SNOW_TRY(record_issue(folder, host, key_hash));
  }
  SNOW_ASSIGN(const Certificate made, make_certificate(key.get(), host, authority.certificate.get(),
                                                       authority.key.get(), kHostSeconds));
  return to_pem(made.get());
}

}  // namespace snow::peer
