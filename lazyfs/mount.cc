#include "lazyfs/mount.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <memory>
#include <sstream>

#include "base/file.h"
#include "base/log.h"

namespace snow {
namespace {

// The path as the mount table has it. Only the folder above is resolved: the last part may be a
// mount that does not answer.
Result<std::string> canonical(const std::string& mount_point) {
  std::string path = mount_point;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "."
                             : slash == 0               ? "/"
                                                        : path.substr(0, slash);
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.empty() || name == "." || name == "..") {
    return fail(Code::invalid, "mount point '{}': must end in the name of a folder", mount_point);
  }
  const std::unique_ptr<char, decltype(&std::free)> real(realpath(folder.c_str(), nullptr),
                                                         &std::free);
  if (!real) return fail_errno(Code::not_found, "mount point '{}': folder above it", mount_point);
  const std::string above = real.get();
  return above == "/" ? "/" + name : above + "/" + name;
}

// The mount table writes space, tab, newline and backslash as \ooo.
std::string unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain += static_cast<char>(std::stoi(text.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

// Whether the mount's server is gone. A child asks, because the question to a server that is alive
// but does not answer would wait for ever.
bool is_dead(const std::string& path) {
  const pid_t child = fork();
  if (child == 0) {
    struct statfs status;  // unlike stat, never answered from the cache
    _exit(statfs(path.c_str(), &status) == 0 ? 0 : errno);
  }
  if (child < 0) return false;
  int status = 0;
  for (int waited_ms = 0; waitpid(child, &status, WNOHANG) == 0; waited_ms += 10) {
    if (waited_ms == 2000) kill(child, SIGKILL);
    if (waited_ms >= 4000) return false;  // it cannot even be killed: somebody has its request
    poll(nullptr, 0, 10);
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == ENOTCONN;
}

struct Mounted {
  std::string type;    // "" if nothing is
  std::string device;  // "major:minor"
};

Result<Mounted> mounted_at(const std::string& mount_point) {
  SNOW_ASSIGN(const std::string path, canonical(mount_point));
  SNOW_ASSIGN(const std::string table, read_file("/proc/self/mountinfo"));
  std::istringstream lines(table);
  Mounted mounted;
  for (std::string line; std::getline(lines, line);) {
    // id parent major:minor root mount_point options... - type source options
    std::istringstream fields(line);
    std::string skip;
    std::string device;
    std::string place;
    fields >> skip >> skip >> device >> skip >> place;
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos || unescape(place) != path) continue;
    const size_t end = line.find(' ', dash + 3);
    mounted = {line.substr(dash + 3, end - dash - 3), device};
  }
  return mounted;
}

}  // namespace

Result<std::string> mounted_type(const std::string& mount_point) {
  SNOW_ASSIGN(const Mounted mounted, mounted_at(mount_point));
  return mounted.type;
}

Result<void> set_mount_readahead(const std::string& mount_point, unsigned kib) {
  SNOW_ASSIGN(const Mounted mounted, mounted_at(mount_point));
  const std::string path = "/sys/class/bdi/" + mounted.device + "/read_ahead_kb";
  const Fd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  const std::string text = std::to_string(kib);
  if (!fd || write(fd.get(), text.data(), text.size()) < 0) {
    return fail_errno(Code::host_failed, "mount point '{}': readahead ({})", mount_point, path);
  }
  return {};
}

Result<Fd> mount_fuse(const std::string& mount_point) {
  SNOW_ASSIGN(std::string type, mounted_type(mount_point));
  while (!type.empty()) {
    if (!type.starts_with("fuse") || !is_dead(mount_point)) {
      return fail(Code::exists,
                  "mount point '{}': a file system of type {} is mounted there; if no other daemon "
                  "uses it, `umount -l {}` removes it",
                  mount_point, type, mount_point);
    }
    if (umount2(mount_point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) < 0) {
      return fail_errno(Code::host_failed,
                        "mount point '{}': the dead FUSE mount there cannot be removed",
                        mount_point);
    }
    log_warn("mount point '{}': removed a dead FUSE mount, whose server is gone", mount_point);
    SNOW_ASSIGN(type, mounted_type(mount_point));
  }
  SNOW_TRY(make_folders(mount_point));
  Fd fd(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!fd) {
    return fail_errno(Code::host_failed, "/dev/fuse cannot be opened (is the fuse module loaded?)");
  }
  const std::string options =
      fmt::format("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", fd.get());
  if (mount("thundersnow", mount_point.c_str(), "fuse.snow",
            MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME, options.c_str()) < 0) {
    return fail_errno(Code::host_failed, "mount point '{}': mount refused (root is needed)",
                      mount_point);
  }
  return fd;
}

Result<Fd> take_over_fuse(int fuse_fd, const std::string& mount_point) {
  struct stat status {};
  if (fstat(fuse_fd, &status) < 0 || !S_ISCHR(status.st_mode) ||
      status.st_rdev != makedev(10, 229)) {
    return fail(Code::invalid, "descriptor {} to take over for '{}' is not /dev/fuse", fuse_fd,
                mount_point);
  }
  Fd fd(fcntl(fuse_fd, F_DUPFD_CLOEXEC, 3));
  if (!fd) return fail_errno(Code::host_failed, "/dev/fuse cannot be duplicated");
  pollfd poll_fd = {fd.get(), POLLIN, 0};
  SNOW_ASSIGN(const std::string type, mounted_type(mount_point));
  if (poll(&poll_fd, 1, 0) < 0 || (poll_fd.revents & POLLERR) != 0 || type.empty()) {
    return fail(Code::host_failed,
                "mount point '{}': the mount to take over is gone; a new one can be made",
                mount_point);
  }
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0 || fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK) < 0) {
    return fail_errno(Code::host_failed, "/dev/fuse: cannot be made blocking");
  }
  return fd;
}

void unmount_fuse(const std::string& mount_point) {
  if (umount2(mount_point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) < 0 && errno != EINVAL &&
      errno != ENOENT) {
    log_warn("mount point '{}': unmount: {}", mount_point, strerror(errno));
  }
}

}  // namespace snow
