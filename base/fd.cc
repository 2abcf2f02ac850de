#include "base/fd.h"

#include <sys/socket.h>
#include <sys/un.h>

namespace snow {
namespace {

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return fail(Code::invalid, "socket path '{}' is longer than {} bytes; use a shorter folder",
                path, sizeof(address.sun_path) - 1);
  }
  path.copy(address.sun_path, path.size());
  return address;
}

}  // namespace

Result<void> read_all_at(int fd, uint64_t offset, std::span<std::byte> into,
                         const std::string& name) {
  while (!into.empty()) {
    const ssize_t got = ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(Code::host_failed, "{}: read at {} failed", name, offset);
    if (got == 0) return fail(Code::corrupt, "{}: ends early, at byte {}", name, offset);
    into = into.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
  return {};
}

Result<void> write_all_at(int fd, uint64_t offset, std::span<const std::byte> data,
                          const std::string& name) {
  while (!data.empty()) {
    const ssize_t put = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail_errno(Code::host_failed, "{}: write at {} failed", name, offset);
    data = data.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return {};
}

Result<void> write_all(int fd, std::span<const std::byte> data, const std::string& name) {
  while (!data.empty()) {
    const ssize_t put = ::write(fd, data.data(), data.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail_errno(Code::host_failed, "{}: write failed", name);
    data = data.subspan(static_cast<size_t>(put));
  }
  return {};
}

Result<Fd> connect_unix(const std::string& path, int type) {
  SNOW_ASSIGN(const sockaddr_un address, address_of(path));
  Fd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(Code::host_failed, "{}: socket", path);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    return fail_errno(Code::unavailable, "{}: cannot connect", path);
  }
  return fd;
}

Result<Fd> listen_unix(const std::string& path, int type) {
  SNOW_ASSIGN(const sockaddr_un address, address_of(path));
  if (connect_unix(path, type)) {
    return fail(Code::exists, "{}: another process listens there already", path);
  }
  ::unlink(path.c_str());
  Fd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(Code::host_failed, "{}: socket", path);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    return fail_errno(Code::host_failed, "{}: bind", path);
  }
  if (::listen(fd.get(), 128) < 0) return fail_errno(Code::host_failed, "{}: listen", path);
  return fd;
}

}  // namespace snow
