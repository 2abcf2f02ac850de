// The images of this host: state_dir/images/NAME/{image.json, disk.raw, kernel, initrd}. A disk is
// kept as a sparse raw file, whatever it was imported from, and never changes.
//
// An import is whole or not there: it is made in a folder beside (images/.import-*) and renamed;
// what a killed daemon left of one is removed at open. Thread-safe; imports of different images run
// at the same time. Whether an image is in use is the caller's to know.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "vm/host.h"

namespace snow {

struct StoredImage {
  std::string name;
  bool has_disk = false;
  bool has_kernel = false;
  bool has_initrd = false;
  uint64_t size_bytes = 0;                          // of the virtual disk; 0 without one
  uint64_t bytes = 0;                               // on the host's disk, all files
  std::string append;                               // kernel command line
  uint64_t memory_bytes = 0;                        // 0: not said
  unsigned cpus = 0;                                // 0: not said
  std::string created;                              // RFC 3339, UTC
  std::string disk_path, kernel_path, initrd_path;  // empty where there is none
};

// {"name", "disk_size", "stored", "disk", "kernel", "initrd" (bools), "append", "memory", "cpus",
// "created"}: what the API shows.
nlohmann::json to_json(const StoredImage& image);

// [a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}: names of images, VMs and snapshots. `kind` is for the message.
Result<void> check_name(std::string_view kind, std::string_view name);

class ImageCatalog {
 public:
  static Result<std::unique_ptr<ImageCatalog>> open(const std::string& state_dir);

  // Takes seconds for a large disk. Code::exists: the name is taken; Code::invalid: not an image,
  // or one that depends on other files or is encrypted; Code::corrupt: truncated or damaged;
  // Code::not_found: no such file; Code::host_failed: the disk is full, for one. Nothing is left of
  // a failure.
  Result<StoredImage> import(const ImportRequest& request);

  // By name; a damaged one is left out and logged.
  Result<std::vector<StoredImage>> list();
  // Code::not_found, or Code::corrupt when a file is missing or has not the size it was stored
  // with.
  Result<StoredImage> find(const std::string& name);
  // Also of a damaged one. Files that a QEMU has open live on until it closes them.
  Result<void> remove(const std::string& name);
  // The folder of its files.
  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }

 private:
  explicit ImageCatalog(std::string folder) : folder_(std::move(folder)) {}

  const std::string folder_;
  std::mutex mutex_;
  std::set<std::string> importing_;
};

}  // namespace snow
