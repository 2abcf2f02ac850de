#include "vm/image_catalog.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"
#include "base/names.h"
#include "vm/image_import.h"
#include "vm/time_text.h"

namespace snow {
namespace {

using nlohmann::json;

constexpr std::string_view kTemporary = ".import-";
constexpr uint64_t kBootFileLimit = uint64_t{2} << 30;  // bytes of a kernel or initrd
constexpr size_t kAppendLimit = 2047;                   // what x86 Linux takes
constexpr const char* kFiles[] = {"disk.raw", "kernel", "initrd"};

Result<void> check_request(const ImportRequest& request) {
  SNOW_TRY(check_name("image", request.name));
  const auto bad = [&](std::string_view what) {
    return fail(Code::invalid, "image '{}': {}", request.name, what);
  };
  if (request.file.empty() && request.kernel.empty()) {
    return bad("neither a disk nor a kernel was given; one is needed to boot");
  }
  if (request.kernel.empty() && !(request.initrd.empty() && request.append.empty())) {
    return bad("--initrd and --append need --kernel");
  }
  if (request.append.size() > kAppendLimit ||
      std::any_of(request.append.begin(), request.append.end(),
                  [](char c) { return static_cast<unsigned char>(c) < ' '; })) {
    return bad("the kernel command line is over 2047 bytes or has control characters");
  }
  if (request.memory_bytes % (2u << 20) != 0) return bad("memory must be a multiple of 2 MiB");
  if (request.cpus > 255) return bad("more than 255 vCPUs");
  return {};
}

// {file name: size} of what is in `folder`; sizes are compared when the image is used.
Result<json> file_sizes(const std::string& folder) {
  json sizes = json::object();
  for (const char* file : kFiles) {
    struct stat status {};
    const std::string path = folder + "/" + file;
    if (::stat(path.c_str(), &status) == 0) {
      sizes[file] = status.st_size;
    } else if (errno != ENOENT) {
      return fail_errno(Code::host_failed, "{}: cannot stat", path);
    }
  }
  return sizes;
}

// Throws json::exception where the record is not what we wrote.
StoredImage from_record(const json& record, const std::string& name, const std::string& folder) {
  StoredImage image;
  image.name = name;
  image.append = record.at("append").get<std::string>();
  image.memory_bytes = record.at("memory").get<uint64_t>();
  image.cpus = record.at("cpus").get<unsigned>();
  image.created = record.at("created").get<std::string>();
  const json& files = record.at("files");
  image.has_disk = files.contains("disk.raw");
  image.has_kernel = files.contains("kernel");
  image.has_initrd = files.contains("initrd");
  if (image.has_disk) {
    image.size_bytes = files.at("disk.raw").get<uint64_t>();
    image.disk_path = folder + "/disk.raw";
  }
  if (image.has_kernel) image.kernel_path = folder + "/kernel";
  if (image.has_initrd) image.initrd_path = folder + "/initrd";
  return image;
}

Result<StoredImage> load(const std::string& name, const std::string& folder) {
  const auto corrupt = [&](const std::string& why) {
    return fail(Code::corrupt, "image '{}' is damaged: {}; remove it and import it again", name,
                why);
  };
  const auto text = read_file(folder + "/image.json", 1 << 20);
  if (!text) return corrupt(text.error().message);
  StoredImage image;
  json files;
  try {
    const json record = json::parse(*text);
    image = from_record(record, name, folder);
    files = record.at("files");
    for (const char* file : kFiles) {
      if (!files.contains(file)) continue;
      const auto expected = files.at(file).get<uint64_t>();
      struct stat status {};
      if (::lstat((folder + "/" + file).c_str(), &status) < 0 || !S_ISREG(status.st_mode)) {
        return corrupt(fmt::format("{} is missing", file));
      }
      if (static_cast<uint64_t>(status.st_size) != expected) {
        return corrupt(
            fmt::format("{} has {} bytes, {} were imported", file, status.st_size, expected));
      }
      image.bytes += static_cast<uint64_t>(status.st_blocks) * 512;
    }
  } catch (const json::exception& error) {
    return corrupt(fmt::format("image.json: {}", error.what()));
  }
  return image;
}

}  // namespace

json to_json(const StoredImage& image) {
  return {{"name", image.name},      {"disk_size", image.size_bytes}, {"stored", image.bytes},
          {"disk", image.has_disk},  {"kernel", image.has_kernel},    {"initrd", image.has_initrd},
          {"append", image.append},  {"memory", image.memory_bytes},  {"cpus", image.cpus},
          {"created", image.created}};
}

Result<std::unique_ptr<ImageCatalog>> ImageCatalog::open(const std::string& state_dir) {
  const std::string folder = state_dir + "/images";
  SNOW_TRY(make_folders(folder, 0711));
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().filename().string().starts_with(kTemporary)) {
      log_info("removing what is left of an unfinished import: {}", entry.path().string());
      remove_all(entry.path().string());
    }
  }
  if (error) return fail(Code::host_failed, "{}: cannot list: {}", folder, error.message());
  return std::unique_ptr<ImageCatalog>(new ImageCatalog(folder));
}

Result<StoredImage> ImageCatalog::import(const ImportRequest& request) {
  SNOW_TRY(check_request(request));
  {
    const std::lock_guard lock(mutex_);
    if (std::filesystem::exists(path(request.name)) || importing_.contains(request.name)) {
      return fail(Code::exists,
                  "image '{}' is there already; choose another name or remove it with `snow image "
                  "rm {}`",
                  request.name, request.name);
    }
    importing_.insert(request.name);
  }
  // The name and the temporary folder are given back whatever happens.
  struct Claim {
    ImageCatalog& catalog;
    const std::string& name;
    const std::string folder;
    ~Claim() {
      remove_all(folder);
      const std::lock_guard lock(catalog.mutex_);
      catalog.importing_.erase(name);
    }
  } claim{*this, request.name, fmt::format("{}/{}{}", folder_, kTemporary, random_hex(8))};

  SNOW_TRY(make_folders(claim.folder, 0755));
  // The small files first: what is wrong with them is known before the long copy.
  if (!request.kernel.empty()) {
    SNOW_TRY(copy_regular_file("kernel", request.kernel, claim.folder + "/kernel", kBootFileLimit));
  }
  if (!request.initrd.empty()) {
    SNOW_TRY(copy_regular_file("initrd", request.initrd, claim.folder + "/initrd", kBootFileLimit));
  }
  if (!request.file.empty()) SNOW_TRY(import_disk(request.file, claim.folder + "/disk.raw"));
  SNOW_ASSIGN(const json sizes, file_sizes(claim.folder));
  const json record = {{"version", 1},
                       {"append", request.append},
                       {"memory", request.memory_bytes},
                       {"cpus", request.cpus},
                       {"created", rfc3339(wall_clock_ns())},
                       {"files", sizes}};
  const std::string text = record.dump(2, ' ', false, json::error_handler_t::replace);
  SNOW_TRY(write_file(claim.folder + "/image.json", text + "\n"));
  if (::rename(claim.folder.c_str(), path(request.name).c_str()) < 0) {
    return fail_errno(Code::host_failed, "image '{}': cannot be put in its place", request.name);
  }
  return load(request.name, path(request.name));
}

Result<std::vector<StoredImage>> ImageCatalog::list() {
  std::vector<StoredImage> images;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error)) {
    const std::string name = entry.path().filename().string();
    if (!check_name("image", name)) continue;  // an import under way, or not ours
    auto image = load(name, entry.path().string());
    if (image) {
      images.push_back(*std::move(image));
    } else if (image.error().code == Code::corrupt && entry.exists(error)) {
      log_warn("{}", image.error().message);
    }
  }
  if (error) return fail(Code::host_failed, "{}: cannot list: {}", folder_, error.message());
  std::sort(images.begin(), images.end(),
            [](const StoredImage& a, const StoredImage& b) { return a.name < b.name; });
  return images;
}

Result<StoredImage> ImageCatalog::find(const std::string& name) {
  if (!check_name("image", name) || !std::filesystem::exists(path(name))) {
    return fail(Code::not_found, "image '{}': no such image; `snow image ls` lists them",
                name.substr(0, 80));
  }
  return load(name, path(name));
}

Result<void> ImageCatalog::remove(const std::string& name) {
  if (!check_name("image", name)) {
    return fail(Code::not_found, "image '{}': no such image; `snow image ls` lists them",
                name.substr(0, 80));
  }
  // First out of sight, then removed: a daemon killed in between leaves nothing half there.
  const std::string hidden = fmt::format("{}/{}{}", folder_, kTemporary, random_hex(8));
  if (::rename(path(name).c_str(), hidden.c_str()) < 0) {
    if (errno == ENOENT) {
      return fail(Code::not_found, "image '{}': no such image; `snow image ls` lists them", name);
    }
    return fail_errno(Code::host_failed, "image '{}': cannot be removed", name);
  }
  remove_all(hidden);
  return {};
}

}  // namespace snow
