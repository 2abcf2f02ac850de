#include "qemu/jail_files.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <span>

namespace snow {

Result<Fd> connect_jail_socket(const std::string& path) {
  const Fd place(open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!place) return fail_errno(Code::unavailable, "{}: cannot open", path);
  struct stat status {};
  if (fstat(place.get(), &status) < 0) return fail_errno(Code::host_failed, "{}: stat", path);
  if (!S_ISSOCK(status.st_mode))
    return fail(Code::denied, "{}: not a socket; the VM's QEMU is not to be trusted, kill it",
                path);
  // By way of the descriptor the kernel connects to exactly what was checked.
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d", place.get());
  Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(Code::host_failed, "{}: socket", path);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
    return fail_errno(Code::unavailable, "{}: cannot connect", path);
  return fd;
}

Result<std::vector<std::byte>> take_jail_file(const std::string& path, size_t limit_bytes) {
  // O_NONBLOCK: a FIFO must not make us wait.
  const Fd fd(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd) return fail_errno(Code::host_failed, "{}: cannot open", path);
  struct stat status {};
  if (fstat(fd.get(), &status) < 0) return fail_errno(Code::host_failed, "{}: stat", path);
  if (!S_ISREG(status.st_mode)) return fail(Code::corrupt, "{}: not a regular file", path);
  if (status.st_size < 0 || static_cast<uint64_t>(status.st_size) > limit_bytes)
    return fail(Code::corrupt, "{}: {} bytes, more than the limit of {}", path, status.st_size,
                limit_bytes);
  std::vector<std::byte> content(static_cast<size_t>(status.st_size));
  SNOW_TRY(read_all_at(fd.get(), 0, content, path));
  if (unlink(path.c_str()) < 0) return fail_errno(Code::host_failed, "{}: cannot remove", path);
  return content;
}

}  // namespace snow
