#include "keeper/jail.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <climits>
#include <csignal>
#include <cstddef>
#include <iterator>
#include <string>

#include "base/fd.h"

namespace snow {
namespace {

constexpr int kAttachAttempts = 20;
constexpr const char* kRootOptions = "size=1m,nr_inodes=1k,mode=0755";

struct Attach {
  bool writable = false;
  bool trusted = false;    // the host's own path: links are followed
  bool recursive = false;  // with what is mounted below it
};

Result<Fd> open_source(const std::string& path, bool trusted) {
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC;
  how.resolve = trusted ? 0 : RESOLVE_NO_SYMLINKS;
  Fd fd(static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, path.c_str(), &how, sizeof how)));
  if (fd) return fd;
  if (errno == ELOOP) {
    return fail(Code::denied, "bind '{}': a symbolic link is in its path; give its real path",
                path);
  }
  const Code code = errno == ENOENT ? Code::not_found : Code::host_failed;
  return fail_errno(code, "bind '{}': cannot open the source", path);
}

// The folder in the jail that is to hold `target`, made with all above it. Follows no link: a
// component may lie in a folder that the VM owns.
Result<Fd> make_parent(int root, const std::string& target, std::string& name) {
  Fd folder(::fcntl(root, F_DUPFD_CLOEXEC, 3));
  size_t start = 1;
  for (;;) {
    const size_t end = target.find('/', start);
    name = target.substr(start, end == std::string::npos ? end : end - start);
    if (end == std::string::npos) return folder;
    if (::mkdirat(folder.get(), name.c_str(), 0755) < 0 && errno != EEXIST) {
      return fail_errno(Code::host_failed, "bind to '{}': cannot make folder '{}'", target, name);
    }
    Fd next(::openat(folder.get(), name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!next) return fail_errno(Code::host_failed, "bind to '{}': folder '{}'", target, name);
    folder = std::move(next);
    start = end + 1;
  }
}

// Code::unavailable if the name that was opened has left the kernel's cache meanwhile.
Result<void> attach_once(int root, const std::string& source, const std::string& target,
                         Attach how) {
  SNOW_ASSIGN(const Fd file, open_source(source, how.trusted));
  struct stat status {};
  if (::fstat(file.get(), &status) < 0) return fail_errno(Code::host_failed, "bind '{}'", source);
  const unsigned recursive = how.recursive ? AT_RECURSIVE : 0;
  const Fd tree(
      ::open_tree(file.get(), "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive));
  if (!tree) return fail_errno(Code::host_failed, "bind '{}': open_tree", source);
  mount_attr attributes{};
  attributes.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
  if (!how.writable) attributes.attr_set |= MOUNT_ATTR_RDONLY;
  if (::mount_setattr(tree.get(), "", AT_EMPTY_PATH | recursive, &attributes, sizeof attributes) <
      0) {
    return fail_errno(Code::host_failed, "bind '{}': mount_setattr", source);
  }
  std::string name;
  SNOW_ASSIGN(const Fd parent, make_parent(root, target, name));
  if (S_ISDIR(status.st_mode)) {
    if (::mkdirat(parent.get(), name.c_str(), 0755) < 0 && errno != EEXIST) {
      return fail_errno(Code::host_failed, "bind to '{}': cannot make it", target);
    }
  } else {
    const Fd made(::openat(parent.get(), name.c_str(),
                           O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0444));
    if (!made && errno != EEXIST) {
      return fail_errno(Code::host_failed, "bind to '{}': cannot make it", target);
    }
  }
  if (::move_mount(tree.get(), "", parent.get(), name.c_str(), MOVE_MOUNT_F_EMPTY_PATH) < 0) {
    return fail_errno(errno == ENOENT ? Code::unavailable : Code::host_failed,
                      "bind '{}' to '{}': move_mount", source, target);
  }
  return {};
}

// Shows `source` at `target` below `root`. The mount gets its flags before it is visible.
//
// Linux 6.16 and later may drop a FUSE file's name from the cache when two processes look it up for
// the first time at once (the name is visible before its validity is set), and a mount whose root
// has lost its name cannot be attached. It is looked up again then.
Result<void> attach(int root, const std::string& source, const std::string& target, Attach how) {
  for (int attempt = 1;; ++attempt) {
    auto attached = attach_once(root, source, target, how);
    if (attached || attached.error().code != Code::unavailable || attempt == kAttachAttempts) {
      return attached;
    }
  }
}

Result<void> leave_host_namespaces(const SpawnSpec& spec) {
  int flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS;
  if (!spec.share_network) flags |= CLONE_NEWNET;
  if (::unshare(flags) < 0) return fail_errno(Code::host_failed, "jail: unshare");
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) < 0) {
    return fail_errno(Code::host_failed, "jail: cannot make the mounts private");
  }
  if (::sethostname(spec.id.c_str(), spec.id.size()) < 0) {
    return fail_errno(Code::host_failed, "jail: sethostname");
  }
  return {};
}

// /usr, and /bin, /lib... as the host has them: links into /usr, or folders.
Result<void> show_system(int root, const SpawnSpec& spec) {
  const Attach system{.writable = false, .trusted = true, .recursive = true};
  for (const char* path : {"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}) {
    struct stat status {};
    if (::lstat(path, &status) < 0) continue;
    if (S_ISDIR(status.st_mode)) {
      SNOW_TRY(attach(root, path, path, system));
    } else if (S_ISLNK(status.st_mode)) {
      char link[PATH_MAX] = {};
      if (::readlink(path, link, sizeof link - 1) < 0 || ::symlinkat(link, root, path + 1) < 0) {
        return fail_errno(Code::host_failed, "jail: cannot make the link '{}'", path);
      }
    }
  }
  for (const char* path : {"/etc/ld.so.cache", "/etc/resolv.conf", "/etc/hosts"}) {
    const bool wanted = spec.share_network || std::string(path) == "/etc/ld.so.cache";
    if (wanted && ::access(path, F_OK) == 0) SNOW_TRY(attach(root, path, path, system));
  }
  return {};
}

Result<void> make_devices(int root, const SpawnSpec& spec) {
  struct Device {
    const char* name;
    unsigned major;
    unsigned minor;
    mode_t mode;
  };
  constexpr Device devices[] = {{"null", 1, 3, 0666},    {"zero", 1, 5, 0666},
                                {"full", 1, 7, 0666},    {"random", 1, 8, 0666},
                                {"urandom", 1, 9, 0666}, {"kvm", 10, 232, 0600}};
  if (::mkdirat(root, "dev", 0755) < 0) return fail_errno(Code::host_failed, "jail: /dev");
  const Fd folder(::openat(root, "dev", O_PATH | O_DIRECTORY | O_CLOEXEC));
  for (const Device& device : devices) {
    const bool is_kvm = device.mode == 0600;
    if (is_kvm && !spec.kvm) continue;
    if (::mknodat(folder.get(), device.name, S_IFCHR | device.mode,
                  makedev(device.major, device.minor)) < 0 ||
        (is_kvm && ::fchownat(folder.get(), device.name, spec.uid, spec.uid, 0) < 0)) {
      return fail_errno(Code::host_failed, "jail: cannot make /dev/{}", device.name);
    }
  }
  return {};
}

// The jail's root becomes the only one; the host's files are out of reach from here on.
Result<void> turn_root(int root) {
  if (::fchdir(root) < 0 || ::syscall(SYS_pivot_root, ".", ".") < 0 ||
      ::umount2(".", MNT_DETACH) < 0 || ::chdir("/") < 0) {
    return fail_errno(Code::host_failed, "jail: cannot change the root");
  }
  mount_attr attributes{};
  attributes.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC;
  if (::mount_setattr(AT_FDCWD, "/", 0, &attributes, sizeof attributes) < 0) {
    return fail_errno(Code::host_failed, "jail: cannot make the root read-only");
  }
  return {};
}

Result<void> give_up_rights(const SpawnSpec& spec) {
  const rlimit no_core{0, 0};
  if (::setrlimit(RLIMIT_CORE, &no_core) < 0) return fail_errno(Code::host_failed, "jail: rlimit");
  for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability) {
    if (::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0) {
      return fail_errno(Code::host_failed, "jail: cannot drop capability {}", capability);
    }
  }
  if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0) {
    return fail_errno(Code::host_failed, "jail: ambient capabilities");
  }
  if (::setgroups(0, nullptr) < 0 || ::setresgid(spec.uid, spec.uid, spec.uid) < 0 ||
      ::setresuid(spec.uid, spec.uid, spec.uid) < 0) {
    return fail_errno(Code::host_failed, "jail: cannot become user {}", spec.uid);
  }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2] = {};
  if (::syscall(SYS_capset, &header, none) < 0) {
    return fail_errno(Code::host_failed, "jail: capset");
  }
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
    return fail_errno(Code::host_failed, "jail: no_new_privs");
  }
  return {};
}

// QEMU does not mind when the advice is refused. Only this one call is looked at; QEMU's own
// sandbox comes on top.
Result<void> refuse_huge_pages() {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MADV_HUGEPAGE, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{static_cast<unsigned short>(std::size(program)), program};
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0) {
    return fail_errno(Code::host_failed, "jail: seccomp filter");
  }
  return {};
}

// Changing the user clears the parent-death signal, so this comes last.
Result<void> die_with(pid_t keeper) {
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0) {
    return fail_errno(Code::host_failed, "jail: parent-death signal");
  }
  if (::getppid() != keeper) return fail(Code::unavailable, "jail: the keeper has ended");
  return {};
}

}  // namespace

Result<void> enter_jail(const SpawnSpec& spec, pid_t keeper) {
  ::umask(0);
  SNOW_TRY(leave_host_namespaces(spec));
  if (::mount("snow-jail", spec.root.c_str(), "tmpfs", MS_NOSUID | MS_NOEXEC, kRootOptions) < 0) {
    return fail_errno(Code::host_failed, "jail: cannot mount its root on '{}'", spec.root);
  }
  const Fd root(::open(spec.root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root) return fail_errno(Code::host_failed, "jail: '{}'", spec.root);
  SNOW_TRY(show_system(root.get(), spec));
  SNOW_TRY(make_devices(root.get(), spec));
  for (const Bind& bind : spec.binds) {
    SNOW_TRY(attach(root.get(), bind.source, bind.target, {.writable = bind.writable}));
  }
  SNOW_TRY(turn_root(root.get()));
  SNOW_TRY(give_up_rights(spec));
  if (spec.no_huge_pages) SNOW_TRY(refuse_huge_pages());
  SNOW_TRY(die_with(keeper));
  ::umask(0077);
  return {};
}

}  // namespace snow
