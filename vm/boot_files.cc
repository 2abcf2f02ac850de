#include "vm/boot_files.h"

#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "base/file.h"

namespace snow {
namespace {

Result<void> copy_file(const std::string& from, const std::string& to) {
  const Fd source(::open(from.c_str(), O_RDONLY | O_CLOEXEC));
  if (!source) return fail_errno(Code::not_found, "{}: cannot open", from);
  struct stat status {};
  if (::fstat(source.get(), &status) < 0 || !S_ISREG(status.st_mode) || status.st_size == 0) {
    return fail(Code::invalid, "{}: not a file with something in it", from);
  }
  const Fd target(::open(to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!target) return fail_errno(Code::host_failed, "{}: cannot create", to);
  off_t left = status.st_size;
  while (left > 0) {
    const ssize_t put = ::sendfile(target.get(), source.get(), nullptr, static_cast<size_t>(left));
    if (put < 0) return fail_errno(Code::host_failed, "{}: copy to {} failed", from, to);
    if (put == 0) break;
    left -= put;
  }
  return {};
}

}  // namespace

std::shared_ptr<BootFiles> BootFiles::at(std::string kernel, std::string initrd) {
  std::shared_ptr<BootFiles> files(new BootFiles);
  files->kernel_ = std::move(kernel);
  files->initrd_ = std::move(initrd);
  return files;
}

Result<std::shared_ptr<BootFiles>> BootFiles::copy_of(Context& context, const std::string& kernel,
                                                      const std::string& initrd,
                                                      const BootFiles& otherwise) {
  std::shared_ptr<BootFiles> files(new BootFiles);
  files->context_ = &context;
  files->folder_ = context.boot_dir() + "/" + random_hex(6);
  SNOW_TRY(make_folders(files->folder_));
  files->kernel_ = otherwise.kernel_;
  files->initrd_ = otherwise.initrd_;
  if (!kernel.empty()) {
    files->kernel_ = files->folder_ + "/kernel";
    SNOW_TRY(copy_file(kernel, files->kernel_));
  }
  if (!initrd.empty()) {
    files->initrd_ = files->folder_ + "/initrd";
    SNOW_TRY(copy_file(initrd, files->initrd_));
  }
  return files;
}

BootFiles::~BootFiles() {
  if (context_ != nullptr && !folder_.empty() && !context_->leaving) remove_all(folder_);
}

nlohmann::json BootFiles::to_json() const {
  return {{"kernel", kernel_}, {"initrd", initrd_}, {"folder", folder_}};
}

std::shared_ptr<BootFiles> BootFiles::from_json(Context& context, const nlohmann::json& json) {
  auto files = at(json.value("kernel", ""), json.value("initrd", ""));
  files->folder_ = json.value("folder", "");
  files->context_ = &context;
  return files;
}

}  // namespace snow
