#include "api/caller.h"

#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sys/fsuid.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cstdlib>
#include <vector>

namespace snow {
namespace {

std::vector<gid_t> groups_of(const Caller& caller) {
  std::vector<char> buffer(16384);
  passwd entry{};
  passwd* found = nullptr;
  ::getpwuid_r(caller.uid, &entry, buffer.data(), buffer.size(), &found);
  if (found == nullptr) return {caller.gid};
  std::vector<gid_t> groups(64);
  int count = static_cast<int>(groups.size());
  while (::getgrouplist(found->pw_name, caller.gid, groups.data(), &count) < 0) {
    groups.resize(groups.size() * 2);
    count = static_cast<int>(groups.size());
  }
  groups.resize(static_cast<size_t>(count));
  return groups;
}

// This thread's file rights are the caller's while the object lives. The kernel drops the
// capabilities that override file permissions together with fsuid 0 and gives them back with it.
// setgroups is called by its number: the C library's would change all threads.
class Rights {
 public:
  explicit Rights(const Caller& caller) {
    old_groups_.resize(static_cast<size_t>(::getgroups(0, nullptr)));
    if (::getgroups(static_cast<int>(old_groups_.size()), old_groups_.data()) < 0) return;
    const std::vector<gid_t> groups = groups_of(caller);
    if (::syscall(SYS_setgroups, groups.size(), groups.data()) < 0) return;
    changed_ = true;
    old_gid_ = static_cast<gid_t>(::setfsgid(caller.gid));
    old_uid_ = static_cast<uid_t>(::setfsuid(caller.uid));
    taken_ = static_cast<uid_t>(::setfsuid(static_cast<uid_t>(-1))) == caller.uid &&
             static_cast<gid_t>(::setfsgid(static_cast<gid_t>(-1))) == caller.gid;
  }
  ~Rights() {
    if (!changed_) return;
    ::setfsuid(old_uid_);
    ::setfsgid(old_gid_);
    const long result = ::syscall(SYS_setgroups, old_groups_.size(), old_groups_.data());
    // A thread with somebody else's rights must not go on.
    if (result < 0 || static_cast<uid_t>(::setfsuid(static_cast<uid_t>(-1))) != old_uid_) abort();
  }
  Rights(const Rights&) = delete;
  Rights& operator=(const Rights&) = delete;
  [[nodiscard]] bool taken() const { return taken_; }

 private:
  std::vector<gid_t> old_groups_;
  uid_t old_uid_ = 0;
  gid_t old_gid_ = 0;
  bool changed_ = false;
  bool taken_ = false;
};

Result<Fd> open_for_reading(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (fd) return fd;
  if (errno == ENOENT || errno == ENOTDIR) {
    return fail_errno(Code::not_found, "file '{}': cannot open", path);
  }
  if (errno == EACCES || errno == EPERM) {
    return fail(Code::denied,
                "file '{}': you may not read it; change its permissions or ask its "
                "owner",
                path);
  }
  return fail_errno(Code::host_failed, "file '{}': cannot open", path);
}

}  // namespace

Result<Caller> caller_of(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
    return fail_errno(Code::denied, "who asks cannot be told");
  }
  return Caller{peer.uid, peer.gid, peer.pid};
}

Result<CallerFile> open_as(const Caller& caller, const std::string& path) {
  if (path.empty() || path[0] != '/' || path.find('\0') != std::string::npos) {
    return fail(Code::invalid, "file '{}': must be an absolute path on the host", path);
  }
  Fd fd;
  if (caller.uid == ::geteuid()) {
    SNOW_ASSIGN(fd, open_for_reading(path));
  } else {
    const Rights rights(caller);
    if (!rights.taken()) {
      return fail(Code::denied, "file '{}': cannot be opened as user {}; snowd must run as root",
                  path, caller.uid);
    }
    SNOW_ASSIGN(fd, open_for_reading(path));
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) < 0) return fail_errno(Code::host_failed, "file '{}'", path);
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return fail(Code::invalid, "file '{}': neither a regular file nor a block device", path);
  }
  std::string proc = fmt::format("/proc/{}/fd/{}", ::getpid(), fd.get());
  return CallerFile{std::move(fd), std::move(proc), path};
}

}  // namespace snow
