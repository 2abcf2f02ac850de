// Images and snapshots: what VMs are started of.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "api/text.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace snow::cli {
namespace {

const std::vector<Column> kImageColumns = {
    {"NAME", "name"},     {"DISK", "disk_size"}, {"STORED", "stored"}, {"KERNEL", "kernel"},
    {"INITRD", "initrd"}, {"MEMORY", "memory"},  {"CPUS", "cpus"},     {"CREATED", "created"}};

const std::vector<Column> kSnapshotColumns = {
    {"NAME", "name"}, {"VM", "vm"},         {"IMAGE", "image"},    {"MEMORY", "memory"},
    {"CPUS", "cpus"}, {"STORED", "stored"}, {"CREATED", "created"}};

Result<int> list(const Options& options, const char* path, const std::vector<Column>& columns) {
  SNOW_ASSIGN(const nlohmann::json all, Client(options.socket).get(path));
  print_list(options, all, columns);
  return 0;
}

Result<int> show(const Options& options, const std::string& path) {
  SNOW_ASSIGN(const nlohmann::json one, Client(options.socket).get(path + escape(options.name)));
  print_object(options, one);
  return 0;
}

Result<int> remove_each(const Options& options, const std::string& path) {
  const Client client(options.socket);
  int code = 0;
  for (const std::string& name : options.names) {
    if (const auto removed = client.remove(path + escape(name)); removed) {
      fmt::print("{}\n", name);
    } else {
      note(removed.error().message);
      if (code == 0) code = exit_code(removed.error().code);
    }
  }
  return code;
}

}  // namespace

Result<int> image_import(const Options& options) {
  nlohmann::json body = {{"name", options.name}};
  const auto set_file = [&](const char* field, const std::string& file) {
    if (!file.empty()) body[field] = std::filesystem::absolute(file).string();
  };
  set_file("file", options.file);
  set_file("kernel", options.kernel);
  set_file("initrd", options.initrd);
  if (options.has_append) body["append"] = options.append;
  if (!options.memory.empty()) {
    SNOW_ASSIGN(const uint64_t memory, parse_size("--memory", options.memory));
    body["memory"] = memory;
  }
  if (options.cpus != 0) body["cpus"] = options.cpus;
  nlohmann::json image;
  {
    const Progress progress(fmt::format("importing '{}'", options.name));
    SNOW_ASSIGN(image, Client(options.socket).post("/images", body));
  }
  print_list(options, options.format == Format::json ? image : nlohmann::json::array({image}),
             kImageColumns);
  return 0;
}

Result<int> image_ls(const Options& options) { return list(options, "/images", kImageColumns); }
Result<int> image_show(const Options& options) { return show(options, "/images/"); }
Result<int> image_rm(const Options& options) { return remove_each(options, "/images/"); }

Result<int> snapshot_create(const Options& options) {
  nlohmann::json made;
  {
    const Progress progress(fmt::format("keeping '{}' as '{}'", options.vm, options.name));
    SNOW_ASSIGN(made,
                Client(options.socket)
                    .post("/vms/" + escape(options.vm) + "/snapshot", {{"name", options.name}}));
  }
  print_list(options, options.format == Format::json ? made : nlohmann::json::array({made}),
             kSnapshotColumns);
  return 0;
}

Result<int> snapshot_ls(const Options& options) {
  return list(options, "/snapshots", kSnapshotColumns);
}
Result<int> snapshot_show(const Options& options) { return show(options, "/snapshots/"); }
Result<int> snapshot_rm(const Options& options) { return remove_each(options, "/snapshots/"); }

}  // namespace snow::cli
