#include "peer/token_store.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "peer/authority.h"
#include "peer/certificate.h"

namespace snow::peer {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;
// A token that is over is remembered so that who comes late hears that, and not "no such token".
constexpr int64_t kRememberNs = 30 * 24 * 3600 * kSecondNs;

// The secret has 128 random bits: a plain hash cannot be guessed back.
std::string hash_of(const Secret& secret) {
  return sha256_hex({reinterpret_cast<const char*>(secret.data()), secret.size()});
}

bool is_record(const nlohmann::json& token) {
  const auto text = [&](const char* key) { return token.contains(key) && token[key].is_string(); };
  return token.is_object() && text("secret_sha256") && text("used_by") && text("used_key") &&
         token.contains("ends_ns") && token["ends_ns"].is_number_integer();
}

size_t index_of(const nlohmann::json& tokens, const Secret& secret) {
  const std::string wanted = hash_of(secret);
  size_t at = 0;
  while (at < tokens.size() && tokens[at]["secret_sha256"] != wanted) ++at;
  return at;
}

tl::unexpected<Error> unknown() {
  return fail(Code::denied, "join token: the cluster knows no such token; make a new one there");
}

}  // namespace

TokenStore::TokenStore(std::string folder, Clock clock)
    : folder_(std::move(folder)), clock_(clock ? std::move(clock) : Clock(wall_clock_ns)) {}

Result<nlohmann::json> TokenStore::load() const {
  const std::string file = folder_ + "/tokens.json";
  const auto text = read_file(file);
  if (!text && text.error().code == Code::not_found) return nlohmann::json::array();
  if (!text) return tl::unexpected<Error>(text.error());
  auto tokens = nlohmann::json::parse(*text, nullptr, false);
  if (!tokens.is_array() || !std::all_of(tokens.begin(), tokens.end(), is_record)) {
    return fail(Code::corrupt, "{}: not a list of join tokens; remove it and make new ones", file);
  }
  return tokens;
}

Result<void> TokenStore::save(const nlohmann::json& tokens) const {
  return write_file(folder_ + "/tokens.json", tokens.dump(1) + "\n", 0600);
}

Result<std::string> TokenStore::make(const std::vector<Address>& addresses, int64_t valid_seconds) {
  if (valid_seconds <= 0 || valid_seconds > kRememberNs / kSecondNs) {
    return fail(Code::invalid, "a join token holds for 1 second to {} days, not for {} s",
                kRememberNs / kSecondNs / 24 / 3600, valid_seconds);
  }
  Token token;
  token.addresses = addresses;
  SNOW_ASSIGN(token.ca_hash, authority_hash(folder_));
  const auto secret = random_bytes(kSecretBytes);
  std::copy(secret.begin(), secret.end(), token.secret.begin());
  SNOW_ASSIGN(std::string text, encode_token(token));
  const int64_t now_ns = clock_();
  const std::lock_guard lock(mutex_);
  SNOW_ASSIGN(const nlohmann::json old, load());
  nlohmann::json tokens = nlohmann::json::array();
  for (const auto& known : old) {
    if (known["ends_ns"].get<int64_t>() + kRememberNs > now_ns) tokens.push_back(known);
  }
  tokens.push_back({{"secret_sha256", hash_of(token.secret)},
                    {"ends_ns", now_ns + valid_seconds * kSecondNs},
                    {"used_by", ""},
                    {"used_key", ""}});
  SNOW_TRY(save(tokens));
  return text;
}

Result<void> TokenStore::look_up(const nlohmann::json& tokens, const Secret& secret,
                                 const std::string& key_hash, size_t& at) const {
  at = index_of(tokens, secret);
  if (at == tokens.size()) return unknown();
  const auto& token = tokens[at];
  const auto used_by = token["used_by"].get<std::string>();
  if (!used_by.empty() && token["used_key"] != key_hash) {
    return fail(Code::denied,
                "join token: was used already, by host '{}'; each is good for one host, make a new "
                "one",
                used_by);
  }
  if (clock_() >= token["ends_ns"].get<int64_t>()) {
    return fail(Code::denied, "join token: is over since {} s; make a new one",
                (clock_() - token["ends_ns"].get<int64_t>()) / kSecondNs);
  }
  return {};
}

Result<void> TokenStore::check_secret(const Secret& secret) {
  const std::lock_guard lock(mutex_);
  SNOW_ASSIGN(const nlohmann::json tokens, load());
  if (index_of(tokens, secret) == tokens.size()) return unknown();
  return {};
}

Result<void> TokenStore::check(const Secret& secret, const std::string& key_hash) {
  const std::lock_guard lock(mutex_);
  SNOW_ASSIGN(const nlohmann::json tokens, load());
  size_t at = 0;
  return look_up(tokens, secret, key_hash, at);
}

Result<void> TokenStore::spend(const Secret& secret, const std::string& host,
                               const std::string& key_hash,
                               const std::function<Result<void>()>& admit) {
  const std::lock_guard lock(mutex_);
  SNOW_ASSIGN(nlohmann::json tokens, load());
  size_t at = 0;
  SNOW_TRY(look_up(tokens, secret, key_hash, at));
  SNOW_TRY(admit());
  tokens[at]["used_by"] = host;
  tokens[at]["used_key"] = key_hash;
  return save(tokens);
}

}  // namespace snow::peer
