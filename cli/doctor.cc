// snow doctor: can this machine run Thundersnow? One line per question, with the mend. Works
// without a daemon. FAIL: VMs or forks cannot work; WARN: they do, with a consequence that is
// named. Of a cluster too, if the daemon is in one (doctor_cluster.cc).
#include "cli/doctor.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "api/settings.h"
#include "api/text.h"
#include "base/file.h"
#include "base/process.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace snow::cli {
namespace {

constexpr int kVersionTimeoutMs = 60'000;
constexpr uint64_t kLeastMemory = uint64_t{1} << 30;
constexpr long kCgroup2Magic = 0x63677270;

// The first "N.N" of a text as {N, N}.
std::pair<int, int> version_in(const std::string& text) {
  const size_t at = text.find_first_of("0123456789");
  int major = 0;
  int minor = 0;
  if (at != std::string::npos) std::sscanf(text.c_str() + at, "%d.%d", &major, &minor);
  return {major, minor};
}

Finding check_qemu() {
  const std::string program = Settings{}.qemu;
  const auto ran = run_process({program, "--version"}, kVersionTimeoutMs);
  if (!ran || ran->exit_code != 0) {
    return {"QEMU", Verdict::fail, program + " does not run; apt-get install qemu-system-x86"};
  }
  const std::string line = ran->standard_output.substr(0, ran->standard_output.find('\n'));
  if (version_in(line) < std::pair(7, 2)) {
    return {"QEMU", Verdict::fail, line + " is too old; 7.2 or newer is needed"};
  }
  return {"QEMU", Verdict::pass, line};
}

Finding check_qemu_img() {
  const auto ran = run_process({"qemu-img", "--version"}, kVersionTimeoutMs);
  if (!ran || ran->exit_code != 0) {
    return {"qemu-img", Verdict::fail, "does not run; apt-get install qemu-utils"};
  }
  return {"qemu-img", Verdict::pass,
          ran->standard_output.substr(0, ran->standard_output.find('\n'))};
}

Finding check_nftables() {
  const auto ran = run_process({"nft", "--version"}, kVersionTimeoutMs);
  if (!ran || ran->exit_code != 0) {
    return {"nftables", Verdict::warn,
            "nft does not run, so `snow run --net user` is refused; apt-get install nftables"};
  }
  return {"nftables", Verdict::pass,
          ran->standard_output.substr(0, ran->standard_output.find('\n'))};
}

Finding check_fuse() {
  struct stat status {};
  if (::stat("/dev/fuse", &status) < 0 || !S_ISCHR(status.st_mode)) {
    return {"FUSE", Verdict::fail, "/dev/fuse is missing; modprobe fuse"};
  }
  if (::geteuid() != 0) return {"FUSE", Verdict::pass, "/dev/fuse is there"};
  const Fd fd(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!fd) {
    return {"FUSE", Verdict::fail,
            fmt::format("/dev/fuse does not open: {}; modprobe fuse, or allow the device in this "
                        "container",
                        strerror(errno))};
  }
  return {"FUSE", Verdict::pass, "/dev/fuse opens"};
}

Finding check_resend() {
  utsname name{};
  ::uname(&name);
  if (version_in(name.release) >= std::pair(6, 9)) {
    return {"FUSE resend", Verdict::pass, fmt::format("Linux {}", name.release)};
  }
  return {"FUSE resend", Verdict::warn,
          fmt::format("Linux {} is older than 6.9: after a restart of snowd its own table of "
                      "requests answers the page faults that waited",
                      name.release)};
}

Finding check_pagemap() {
#ifdef PAGEMAP_SCAN
  using ScanArguments = pm_scan_arg;
  constexpr unsigned long kScan = PAGEMAP_SCAN;
#else
  // linux/fs.h of Linux 6.7; older headers do not have it.
  struct ScanArguments {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
        category_mask, category_anyof_mask, return_mask;
  };
  constexpr unsigned long kScan = _IOWR('f', 16, ScanArguments);
#endif
  const Fd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return {"private pages", Verdict::fail,
            fmt::format("/proc/self/pagemap does not open: {}; forks need it", strerror(errno))};
  }
  ScanArguments arguments{};
  arguments.size = sizeof arguments;
  if (::ioctl(fd.get(), kScan, &arguments) >= 0 || errno != ENOTTY) {
    return {"private pages", Verdict::pass, "PAGEMAP_SCAN"};
  }
  return {"private pages", Verdict::warn,
          "no PAGEMAP_SCAN (Linux 6.7): /proc/PID/pagemap is read instead, so that forks of large "
          "guests take longer"};
}

Finding check_kvm() {
  const auto cpuinfo = read_file("/proc/cpuinfo");
  const bool has_extension = cpuinfo && (cpuinfo->find(" vmx") != std::string::npos ||
                                         cpuinfo->find(" svm") != std::string::npos);
  const Fd fd(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  const int error = errno;
  if (has_extension && fd) return {"KVM", Verdict::pass, "guests run with KVM"};
  std::string why = "the CPU shows neither vmx nor svm";
  if (has_extension) {
    why = fmt::format(
        "/dev/kvm does not open ({}); modprobe kvm_intel or kvm_amd, or switch "
        "virtualization on in the firmware",
        strerror(error));
    if (error == EACCES && ::geteuid() != 0) why = "only root can tell; run `sudo snow doctor`";
  }
  return {"KVM", Verdict::warn, why + ": guests run with TCG, ten times slower or more"};
}

Finding check_cgroup() {
  struct statfs status {};
  if (::statfs("/sys/fs/cgroup", &status) < 0 || status.f_type != kCgroup2Magic) {
    return {"cgroup v2", Verdict::warn,
            "/sys/fs/cgroup is not cgroup v2: VMs get no cgroups of their own; boot with "
            "systemd.unified_cgroup_hierarchy=1"};
  }
  if (::geteuid() != 0) return {"cgroup v2", Verdict::pass, "mounted"};
  const std::string probe = fmt::format("/sys/fs/cgroup/snow-doctor-{}", ::getpid());
  if (::mkdir(probe.c_str(), 0755) < 0) {
    return {"cgroup v2", Verdict::warn,
            fmt::format("/sys/fs/cgroup is not writable ({}): VMs get no cgroups of their own",
                        strerror(errno))};
  }
  ::rmdir(probe.c_str());
  return {"cgroup v2", Verdict::pass, "mounted and writable"};
}

Finding check_memory() {
  const auto meminfo = read_file("/proc/meminfo");
  uint64_t kib = 0;
  const size_t at = meminfo ? meminfo->find("MemAvailable:") : std::string::npos;
  if (at != std::string::npos) std::sscanf(meminfo->c_str() + at, "MemAvailable: %lu", &kib);
  if (kib * 1024 < kLeastMemory) {
    return {"memory", Verdict::warn,
            format_size(kib * 1024) + " available: room for very few VMs; end other programs"};
  }
  return {"memory", Verdict::pass, format_size(kib * 1024) + " available"};
}

Finding check_uids() {
  const uint64_t base = Settings{}.uid_base;
  const uint64_t last = base + 65535;
  const auto map = read_file("/proc/self/uid_map");
  if (map) {
    uint64_t inside = 0, outside = 0, count = 0;
    const bool one = std::sscanf(map->c_str(), "%lu %lu %lu", &inside, &outside, &count) == 3;
    if (one && inside + count <= last) {
      return {"users of VMs", Verdict::fail,
              fmt::format("users {} to {} do not exist in this user namespace; set uid_base in "
                          "/etc/snow/snowd.toml",
                          base, last)};
    }
  }
  for (const char* file : {"/etc/subuid", "/etc/subgid"}) {
    const auto content = read_file(file);
    if (!content) continue;
    size_t from = 0;
    while (from < content->size()) {
      const size_t end = std::min(content->find('\n', from), content->size());
      const std::string line = content->substr(from, end - from);
      from = end + 1;
      uint64_t start = 0, count = 0;
      const size_t colon = line.find(':');
      if (colon == std::string::npos ||
          std::sscanf(line.c_str() + colon, ":%lu:%lu", &start, &count) != 2) {
        continue;
      }
      if (start <= last && base < start + count) {
        return {"users of VMs", Verdict::warn,
                fmt::format("users {} to {} overlap with '{}' in {}: containers of that user "
                            "could touch VMs; set uid_base in /etc/snow/snowd.toml",
                            base, last, line, file)};
      }
    }
  }
  return {"users of VMs", Verdict::pass, fmt::format("{} to {} are free", base, last)};
}

Finding check_group() {
  const std::string group = Settings{}.api_group;
  if (::getgrnam(group.c_str()) == nullptr) {
    return {
        "API group", Verdict::warn,
        fmt::format("group '{}' does not exist, so only root may use snow; groupadd --system {}",
                    group, group)};
  }
  return {"API group", Verdict::pass, fmt::format("group '{}'", group)};
}

// Last, and with it what only the daemon can tell.
void check_daemon(const Options& options, std::vector<Finding>& findings) {
  const Client client(options.socket);
  const auto info = client.get("/info");
  if (!info) {
    findings.push_back({"snowd", Verdict::warn, info.error().message});
    return;
  }
  for (Finding& finding : check_cluster(client, *info)) findings.push_back(std::move(finding));
  findings.push_back({"snowd", Verdict::pass,
                      fmt::format("version {} at {}", cell(*info, "version"), options.socket)});
}

}  // namespace

Result<int> doctor(const Options& options) {
  std::vector<Finding> findings = {
      check_qemu(),   check_qemu_img(), check_fuse(), check_resend(), check_pagemap(), check_kvm(),
      check_cgroup(), check_memory(),   check_uids(), check_group(),  check_nftables()};
  check_daemon(options, findings);
  const auto word = [](Verdict verdict) {
    return verdict == Verdict::pass ? "PASS" : verdict == Verdict::warn ? "WARN" : "FAIL";
  };
  bool failed = false;
  nlohmann::json list = nlohmann::json::array();
  for (const Finding& finding : findings) {
    failed = failed || finding.verdict == Verdict::fail;
    list.push_back(
        {{"check", finding.what}, {"verdict", word(finding.verdict)}, {"text", finding.text}});
    if (options.format == Format::table) {
      fmt::print("{}  {:<14} {}\n", word(finding.verdict), finding.what, finding.text);
    }
  }
  if (options.format != Format::table) print_list(options, list, {}, "verdict");
  return failed ? exit_code(Code::host_failed) : 0;
}

}  // namespace snow::cli
