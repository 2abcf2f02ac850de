#include "cluster/etcd_messages.h"

#include <charconv>

#include "cluster/base64.h"
#include "cluster/json_text.h"

namespace snow {
namespace {

using nlohmann::json;

constexpr size_t kMaxErrorBytes = 300;

json key_of(const std::string& key) { return base64_encode(key); }
json number_text(uint64_t number) { return std::to_string(number); }

Result<json> parse_object(std::string_view body) {
  SNOW_ASSIGN(auto value, parse_json(body));
  if (!value.is_object()) return fail(Code::corrupt, "not a JSON object");
  return value;
}

// A number in a string (or, from other gateways, as it is); 0 if it is left out.
Result<uint64_t> number_of(const json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return 0;
  if (found->is_number_unsigned()) return found->get<uint64_t>();
  uint64_t number = 0;
  if (found->is_string()) {
    const auto& text = found->get_ref<const std::string&>();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc() && end == text.data() + text.size() && !text.empty() &&
        number <= INT64_MAX) {
      return number;
    }
  }
  return fail(Code::corrupt, "'{}' is not a number", name);
}

Result<bool> bool_of(const json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return false;
  if (!found->is_boolean()) return fail(Code::corrupt, "'{}' is not a boolean", name);
  return found->get<bool>();
}

Result<std::string> bytes_of(const json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end()) return std::string();
  if (!found->is_string()) return fail(Code::corrupt, "'{}' is not a string", name);
  auto bytes = base64_decode(found->get_ref<const std::string&>());
  if (!bytes) return within(name, bytes.error());
  return bytes;
}

Result<EtcdLease> lease_of(const json& object) {
  EtcdLease lease;
  SNOW_ASSIGN(lease.id, number_of(object, "ID"));
  SNOW_ASSIGN(lease.seconds, number_of(object, "TTL"));
  return lease;
}

}  // namespace

std::string etcd_range_request(const std::string& key, const std::string& end, uint64_t limit,
                               uint64_t revision) {
  json request = {{"key", key_of(key)}};
  if (!end.empty()) request["range_end"] = key_of(end);
  if (limit != 0) request["limit"] = number_text(limit);
  if (revision != 0) request["revision"] = number_text(revision);
  return request.dump();
}

std::string etcd_txn_request(const std::string& prefix, const Transaction& transaction,
                             const std::vector<std::string>& texts) {
  json compares = json::array();
  for (const auto& compare : transaction.compares) {
    json one = {{"key", key_of(prefix + compare.key)}, {"target", "MOD"}};
    const bool present = compare.revision == Transaction::kPresent;
    one["result"] = present ? "GREATER" : "EQUAL";
    one["mod_revision"] = number_text(present ? 0 : compare.revision);
    compares.push_back(std::move(one));
  }
  json changes = json::array();
  for (size_t i = 0; i < transaction.puts.size(); ++i) {
    const auto& put = transaction.puts[i];
    json one = {{"key", key_of(prefix + put.key)}, {"value", base64_encode(texts[i])}};
    if (put.lease != kNoLease) one["lease"] = number_text(put.lease);
    changes.push_back({{"request_put", std::move(one)}});
  }
  for (const auto& key : transaction.removes) {
    changes.push_back({{"request_delete_range", {{"key", key_of(prefix + key)}}}});
  }
  return json{{"compare", std::move(compares)}, {"success", std::move(changes)}}.dump();
}

std::string etcd_grant_request(unsigned seconds) {
  return json{{"TTL", number_text(seconds)}}.dump();
}

std::string etcd_lease_request(LeaseId lease) { return json{{"ID", number_text(lease)}}.dump(); }

Result<EtcdRange> parse_etcd_range(std::string_view body) {
  SNOW_ASSIGN(const json answer, parse_object(body));
  const auto header = answer.find("header");
  if (header == answer.end() || !header->is_object()) return fail(Code::corrupt, "no 'header'");
  EtcdRange range;
  SNOW_ASSIGN(range.revision, number_of(*header, "revision"));
  SNOW_ASSIGN(range.more, bool_of(answer, "more"));
  const auto entries = answer.find("kvs");
  if (entries == answer.end()) return range;
  if (!entries->is_array()) return fail(Code::corrupt, "'kvs' is not a list");
  for (const json& one : *entries) {
    if (!one.is_object()) return fail(Code::corrupt, "'kvs' has something else in it");
    EtcdEntry entry;
    SNOW_ASSIGN(entry.key, bytes_of(one, "key"));
    SNOW_ASSIGN(entry.value, bytes_of(one, "value"));
    SNOW_ASSIGN(entry.revision, number_of(one, "mod_revision"));
    if (entry.key.empty() || entry.revision == 0) {
      return fail(Code::corrupt, "'kvs' has an entry without key or revision");
    }
    range.entries.push_back(std::move(entry));
  }
  return range;
}

Result<bool> parse_etcd_txn(std::string_view body) {
  SNOW_ASSIGN(const json answer, parse_object(body));
  if (!answer.contains("header")) return fail(Code::corrupt, "no 'header'");
  return bool_of(answer, "succeeded");
}

Result<EtcdLease> parse_etcd_grant(std::string_view body) {
  SNOW_ASSIGN(const json answer, parse_object(body));
  SNOW_ASSIGN(const EtcdLease lease, lease_of(answer));
  if (lease.id == kNoLease || lease.seconds == 0) return fail(Code::corrupt, "no lease in it");
  return lease;
}

Result<EtcdLease> parse_etcd_keep_alive(std::string_view body) {
  SNOW_ASSIGN(const json answer, parse_object(body));
  const auto result = answer.find("result");
  if (result == answer.end() || !result->is_object()) return fail(Code::corrupt, "no 'result'");
  return lease_of(*result);
}

std::string parse_etcd_error(std::string_view body) {
  const auto answer = parse_json(body);
  if (!answer || !answer->is_object()) return {};
  const json* holder = &*answer;
  const auto error = answer->find("error");
  if (error != answer->end() && error->is_object()) holder = &*error;  // a stream's error
  for (const char* name : {"message", "error"}) {
    const auto text = holder->find(name);
    if (text == holder->end() || !text->is_string()) continue;
    return text->get_ref<const std::string&>().substr(0, kMaxErrorBytes);
  }
  return {};
}

}  // namespace snow
