#include "vm/overlay.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/process.h"
#include "image/qcow2.h"
#include "qemu/machine.h"

namespace snow {

Result<OverlayMaker::Template> OverlayMaker::make_template(uint64_t virtual_size) const {
  SNOW_TRY(make_folders(folder_, 0700));
  const std::string path = fmt::format("{}/{}.qcow2", folder_, virtual_size);
  const std::string beside = path + "." + random_hex(4);
  // -u: the backing file lies in the VM's jail, not here. The clusters' default size (64 KiB) keeps
  // the copy for each clone small.
  SNOW_ASSIGN(const ProcessOutput made,
              run_process({"qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", JailPaths::kDisk,
                           "-F", "raw", beside, std::to_string(virtual_size)}));
  if (made.exit_code != 0) {
    remove_all(beside);
    return fail(Code::host_failed, "{}: qemu-img cannot make an overlay of {} bytes: {}", path,
                virtual_size, made.standard_error);
  }
  Template result;
  result.fd = Fd(::open(beside.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat status {};
  if (!result.fd || ::fstat(result.fd.get(), &status) < 0 ||
      ::rename(beside.c_str(), path.c_str()) < 0) {
    const auto error =
        fail_errno(Code::host_failed, "{}: cannot keep the overlay's template", path);
    remove_all(beside);
    return error;
  }
  result.bytes = static_cast<uint64_t>(status.st_size);
  // A freeze reads what QEMU made of this file: better refused now than then.
  SNOW_ASSIGN(const Qcow2Map map, read_qcow2_map(result.fd.get(), path));
  if (map.virtual_size != virtual_size || !map.extents.empty()) {
    return fail(Code::internal, "{}: qemu-img made an overlay of {} bytes with {} extents", path,
                map.virtual_size, map.extents.size());
  }
  return result;
}

Result<const OverlayMaker::Template*> OverlayMaker::template_of(uint64_t virtual_size) {
  if (virtual_size == 0 || virtual_size % 512 != 0) {
    return fail(Code::invalid, "a disk of {} bytes; it must be a multiple of 512", virtual_size);
  }
  const std::lock_guard lock(mutex_);
  if (const auto found = templates_.find(virtual_size); found != templates_.end()) {
    return &found->second;
  }
  SNOW_ASSIGN(Template made, make_template(virtual_size));
  return &templates_.emplace(virtual_size, std::move(made)).first->second;
}

Result<void> OverlayMaker::prepare(uint64_t virtual_size) {
  SNOW_TRY(template_of(virtual_size));
  return {};
}

Result<void> OverlayMaker::make(uint64_t virtual_size, const std::string& path, uid_t uid,
                                gid_t gid) {
  SNOW_ASSIGN(const Template* source, template_of(virtual_size));
  const Fd into(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!into) {
    return fail_errno(errno == EEXIST ? Code::exists : Code::host_failed, "{}: cannot create",
                      path);
  }
  const auto give_up = [&] {
    auto error = fail_errno(Code::host_failed, "{}: cannot make the overlay", path);
    ::unlink(path.c_str());
    return error;
  };
  if (::ioctl(into.get(), FICLONE, source->fd.get()) < 0) {
    off_t offset = 0;
    while (static_cast<uint64_t>(offset) < source->bytes) {
      const size_t left = source->bytes - static_cast<uint64_t>(offset);
      const ssize_t copied = ::sendfile(into.get(), source->fd.get(), &offset, left);
      if (copied < 0 && errno == EINTR) continue;
      if (copied == 0) errno = EIO;  // cannot be: the template is ours and never shrinks
      if (copied <= 0) return give_up();
    }
  }
  if (::fchown(into.get(), uid, gid) < 0) return give_up();
  return {};
}

}  // namespace snow
