#include "vm/cluster_config.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/file.h"

namespace snow {
namespace {

constexpr std::string_view kPlain = "plain:";

}  // namespace

std::string cluster_folder(const std::string& state_dir) { return state_dir + "/cluster"; }

Result<std::optional<ClusterConfig>> read_cluster_config(const std::string& state_dir) {
  const std::string path = cluster_folder(state_dir) + "/cluster.json";
  if (::access(path.c_str(), F_OK) < 0) return std::optional<ClusterConfig>();
  SNOW_ASSIGN(const std::string text, read_file(path));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  try {
    ClusterConfig config;
    json.at("cluster").get_to(config.cluster);
    json.at("name").get_to(config.name);
    json.at("host").get_to(config.host);
    json.at("host_name").get_to(config.host_name);
    json.at("address").get_to(config.address);
    json.at("etcd").get_to(config.etcd);
    json.at("authority").get_to(config.authority);
    json.at("plain").get_to(config.plain);
    return std::optional(config);
  } catch (const nlohmann::json::exception& error) {
    return fail(Code::corrupt,
                "{}: damaged ({}); `snow cluster join` anew, or remove the file's folder", path,
                error.what());
  }
}

Result<void> write_cluster_config(const std::string& state_dir, const ClusterConfig& config) {
  const nlohmann::json json = {{"cluster", config.cluster},     {"name", config.name},
                               {"host", config.host},           {"host_name", config.host_name},
                               {"address", config.address},     {"etcd", config.etcd},
                               {"authority", config.authority}, {"plain", config.plain}};
  SNOW_TRY(make_folders(cluster_folder(state_dir), 0700));
  return write_file(cluster_folder(state_dir) + "/cluster.json", json.dump(2) + "\n", 0600);
}

std::string plain_token(const ClusterConfig& config) {
  const nlohmann::json json = {
      {"cluster", config.cluster}, {"name", config.name}, {"etcd", config.etcd}};
  return std::string(kPlain) + json.dump();
}

std::optional<ClusterConfig> from_plain_token(const std::string& token) {
  if (!token.starts_with(kPlain)) return {};
  const auto json = nlohmann::json::parse(token.substr(kPlain.size()), nullptr, false);
  try {
    ClusterConfig config;
    json.at("cluster").get_to(config.cluster);
    json.at("name").get_to(config.name);
    json.at("etcd").get_to(config.etcd);
    config.plain = true;
    return config;
  } catch (const nlohmann::json::exception&) {
    return {};
  }
}

}  // namespace snow
