#include "cluster/registry.h"

#include <algorithm>
#include <array>

#include "cluster/values.h"

namespace snow {
namespace {

constexpr std::array kKinds = {"image", "frozen", "ticket"};
constexpr int kVersion = 1;
constexpr size_t kChangesAtOnce = 64;

std::string prefix_of(std::string_view kind, const std::string& host) {
  return std::string(kind) + "/" + host + "/";
}

// Puts and removes in any order, in as many transactions as they need.
Result<void> commit_all(Directory& directory, const std::vector<Transaction::Put>& puts,
                        const std::vector<std::string>& removes) {
  for (size_t begin = 0; begin < puts.size() + removes.size(); begin += kChangesAtOnce) {
    Transaction transaction;
    const size_t end = std::min(begin + kChangesAtOnce, puts.size() + removes.size());
    for (size_t i = begin; i < end; ++i) {
      if (i < puts.size()) {
        transaction.puts.push_back(puts[i]);
      } else {
        transaction.removes.push_back(removes[i - puts.size()]);
      }
    }
    SNOW_TRY(directory.commit(transaction));
  }
  return {};
}

}  // namespace

Result<void> Registry::publish(const Kept& kept) {
  std::map<std::string, nlohmann::json> wanted;
  for (const auto& [kind, entries] : kept) {
    for (const auto& [id, value] : entries) {
      nlohmann::json json = value;
      json["version"] = kVersion;
      wanted[prefix_of(kind, host_) + id] = std::move(json);
    }
  }
  if (!published_) {
    std::map<std::string, nlohmann::json> there;
    for (const char* kind : kKinds) {
      std::vector<Directory::Damaged> damaged;
      SNOW_ASSIGN(const auto entries, directory_.list(prefix_of(kind, host_), &damaged));
      for (const auto& entry : entries) there[entry.key] = entry.value;
      for (const auto& entry : damaged) there[entry.key] = nullptr;
    }
    published_ = std::move(there);
  }
  if (*published_ == wanted) return {};
  std::vector<Transaction::Put> puts;
  std::vector<std::string> removes;
  for (const auto& [key, value] : wanted) {
    const auto it = published_->find(key);
    if (it == published_->end() || it->second != value) puts.push_back({key, value, kNoLease});
  }
  for (const auto& [key, value] : *published_) {
    if (!wanted.contains(key)) removes.push_back(key);
  }
  auto done = commit_all(directory_, puts, removes);
  // After an error nobody knows how much of it happened: it is read again.
  published_ = done ? std::optional(std::move(wanted)) : std::nullopt;
  return done;
}

Result<Kept> kept_by(Directory& directory, const std::string& host) {
  SNOW_TRY(check_host_id(host));
  Kept kept;
  for (const char* kind : kKinds) {
    const std::string prefix = prefix_of(kind, host);
    std::vector<Directory::Damaged> damaged;
    SNOW_ASSIGN(const auto entries, directory.list(prefix, &damaged));
    auto& by_id = kept[kind];
    for (const auto& entry : entries) {
      nlohmann::json value = entry.value;
      if (!value.is_object() || value.value("version", nlohmann::json()) != kVersion) continue;
      value.erase("version");
      by_id[entry.key.substr(prefix.size())] = std::move(value);
    }
  }
  return kept;
}

Result<void> forget_kept(Directory& directory, const std::string& host) {
  return Registry(directory, host).publish({});
}

}  // namespace snow
