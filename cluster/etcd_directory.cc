#include "cluster/etcd_directory.h"

#include "cluster/etcd_messages.h"

namespace snow {
namespace {

constexpr uint64_t kPage = 1000;  // entries asked for at once
constexpr size_t kMaxEntries = 1'000'000;
constexpr int kListAttempts = 3;

using Repeat = EtcdHttp::Repeat;

// An answer that could not be parsed.
tl::unexpected<Error> strange(const char* what, Error error) {
  return within(fmt::format("etcd's answer to {}", what), std::move(error));
}

}  // namespace

Result<std::unique_ptr<EtcdDirectory>> EtcdDirectory::make(EtcdOptions options) {
  std::string prefix = options.prefix;
  if (prefix.size() < 3 || prefix.front() != '/' || prefix.back() != '/' ||
      !check_key(std::string_view(prefix).substr(1, prefix.size() - 2))) {
    return fail(Code::invalid, "etcd: '{}' is not a prefix like /snow/CLUSTER_ID/", prefix);
  }
  SNOW_ASSIGN(auto http, EtcdHttp::make(std::move(options)));
  return std::unique_ptr<EtcdDirectory>(new EtcdDirectory(std::move(prefix), std::move(http)));
}

Result<std::optional<Directory::Entry>> EtcdDirectory::get(const std::string& key) {
  SNOW_TRY(check_key(key));
  SNOW_ASSIGN(
      const std::string body,
      http_->post("/v3/kv/range", etcd_range_request(prefix_ + key, "", 0, 0), Repeat::allowed));
  auto range = parse_etcd_range(body);
  if (!range) return strange("a read", range.error());
  if (range->entries.empty()) return std::nullopt;
  const EtcdEntry& found = range->entries.front();
  if (found.key != prefix_ + key) {
    return fail(Code::corrupt, "etcd answered with another key than '{}'", prefix_ + key);
  }
  SNOW_ASSIGN(auto value, parse_stored_value(prefix_ + key, found.value));
  return Entry{key, std::move(value), found.revision};
}

Result<std::vector<Directory::Entry>> EtcdDirectory::list(const std::string& prefix,
                                                          std::vector<Damaged>* damaged) {
  SNOW_TRY(check_prefix(prefix));
  const std::string end = end_of_prefix(prefix_ + prefix);
  std::vector<Entry> all;
  std::string from = prefix_ + prefix;
  uint64_t revision = 0;  // of the first page; the others are read as of that
  int attempts = 1;
  for (bool more = true; more;) {
    const auto body = http_->post("/v3/kv/range", etcd_range_request(from, end, kPage, revision),
                                  Repeat::allowed);
    if (!body) {
      // Compacted while we paged: begin again, as of now.
      if (body.error().message.find("compacted") == std::string::npos ||
          ++attempts > kListAttempts) {
        return tl::unexpected<Error>(body.error());
      }
      all.clear();
      if (damaged != nullptr) damaged->clear();
      from = prefix_ + prefix;
      revision = 0;
      continue;
    }
    auto range = parse_etcd_range(*body);
    if (!range) return strange("a list", range.error());
    if (revision == 0) revision = range->revision;
    for (const EtcdEntry& entry : range->entries) {
      if (entry.key < from || entry.key >= end) {
        return fail(Code::corrupt, "etcd answered with a key outside of '{}'", prefix_ + prefix);
      }
      from = entry.key + '\0';  // the next key possible
      auto value = parse_stored_value(entry.key, entry.value);
      if (value) {
        all.push_back(Entry{entry.key.substr(prefix_.size()), std::move(*value), entry.revision});
      } else if (damaged != nullptr) {
        damaged->push_back({entry.key.substr(prefix_.size()), value.error()});
      } else {
        return tl::unexpected<Error>(value.error());
      }
    }
    more = range->more && !range->entries.empty();
    if (all.size() > kMaxEntries) {
      return fail(Code::no_room, "etcd has more than {} keys under '{}'", kMaxEntries,
                  prefix_ + prefix);
    }
  }
  return all;
}

Result<bool> EtcdDirectory::commit(const Transaction& transaction) {
  SNOW_ASSIGN(const std::vector<std::string> texts, check_transaction(transaction));
  SNOW_ASSIGN(
      const std::string body,
      http_->post("/v3/kv/txn", etcd_txn_request(prefix_, transaction, texts), Repeat::forbidden));
  auto held = parse_etcd_txn(body);
  if (!held) return strange("a change", held.error());
  return held;
}

Result<LeaseId> EtcdDirectory::grant(unsigned seconds) {
  SNOW_TRY(check_lease_seconds(seconds));
  SNOW_ASSIGN(const std::string body,
              http_->post("/v3/lease/grant", etcd_grant_request(seconds), Repeat::allowed));
  auto lease = parse_etcd_grant(body);
  if (!lease) return strange("a lease", lease.error());
  if (lease->seconds < seconds) {
    return fail(Code::host_failed, "etcd granted a lease of {} instead of {} seconds",
                lease->seconds, seconds);
  }
  return lease->id;
}

Result<void> EtcdDirectory::keep_alive(LeaseId lease) {
  SNOW_ASSIGN(const std::string body,
              http_->post("/v3/lease/keepalive", etcd_lease_request(lease), Repeat::allowed));
  auto kept = parse_etcd_keep_alive(body);
  if (!kept) return strange("a keep-alive", kept.error());
  if (kept->id != lease) return fail(Code::corrupt, "etcd kept another lease alive than {}", lease);
  if (kept->seconds == 0) return fail(Code::not_found, "directory: lease {} is over", lease);
  return {};
}

Result<void> EtcdDirectory::revoke(LeaseId lease) {
  SNOW_TRY(http_->post("/v3/lease/revoke", etcd_lease_request(lease), Repeat::allowed));
  return {};
}

}  // namespace snow
