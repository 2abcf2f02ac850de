#include "guest/agent/identity.h"

#include <fcntl.h>
#include <linux/random.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "guest/agent/hooks.h"
#include "guest/agent/util.h"

namespace snow::guest {

using channel::field;
using channel::Fields;
using channel::number_field;

namespace {

constexpr int64_t kClockToleranceNs = 1'000'000;

std::string set_hostname(const std::string& name) {
  if (sethostname(name.data(), name.size()) != 0) return "hostname: " + error_text(errno);
  // A read-only /etc is no failure: the name is set.
  write_small_file("/etc/hostname", name + "\n", O_TRUNC);
  return "";
}

// In place; on a read-only /etc a file in /run is mounted over it, as systemd does.
std::string set_machine_id(std::string_view uuid, const IdentityPaths& paths) {
  std::string id;
  for (const char c : uuid) {
    if (isxdigit(static_cast<unsigned char>(c)) != 0) {
      id += static_cast<char>(tolower(static_cast<unsigned char>(c)));
    }
  }
  if (id.size() != 32) return "machine-id: '" + std::string(uuid) + "' is not a UUID";
  id += '\n';
  constexpr const char* kFile = "/etc/machine-id";
  int error = write_small_file(kFile, id, O_TRUNC);
  if (error == 0 || error == ENOENT) return "";  // a guest without one needs none
  const std::string transient = paths.run + "/machine-id";
  if (replace_file(transient, id, 0444) == 0 &&
      mount(transient.c_str(), kFile, nullptr, MS_BIND, nullptr) == 0) {
    return "";
  }
  return std::string(kFile) + ": " + error_text(error);
}

// A key that a shell can use as a variable's name.
std::string variable_name(std::string_view key) {
  std::string name(key);
  for (char& c : name) {
    if (isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

// SNOW_* and PARAM_*.
Environment variables_of(const Fields& resume) {
  Environment variables;
  constexpr std::pair<const char*, const char*> kKeys[] = {
      {"SNOW_ID", "id"},         {"SNOW_NAME", "name"},
      {"SNOW_INDEX", "index"},   {"SNOW_COUNT", "count"},
      {"SNOW_TICKET", "ticket"}, {"SNOW_PARENT", "parent"},
      {"SNOW_UUID", "uuid"},     {"SNOW_GENERATION", "generation"},
      {"SNOW_IMAGE", "image"},
  };
  for (const auto& [variable, key] : kKeys) variables[variable] = field(resume, key);
  for (auto at = resume.lower_bound("param."); at != resume.end(); ++at) {
    if (!at->first.starts_with("param.")) break;
    variables["PARAM_" + variable_name(std::string_view(at->first).substr(6))] = at->second;
  }
  return variables;
}

std::string lines_of(const Environment& variables) {
  std::string text;
  for (const auto& [key, value] : variables) text += key + "=" + shell_quote(value) + "\n";
  return text;
}

std::string set_identity(const Fields& resume, const IdentityPaths& paths) {
  std::string failed;
  const auto note = [&failed](const std::string& what) {
    if (!what.empty()) failed += (failed.empty() ? "" : "; ") + what;
  };
  const std::string hostname(field(resume, "hostname"));
  if (!hostname.empty()) note(set_hostname(hostname));
  if (field(resume, "machine_id") == "new") note(set_machine_id(field(resume, "uuid"), paths));
  const std::string mac(field(resume, "mac"));
  if (!mac.empty()) note(set_mac(mac));
  if (const int error = replace_file(paths.run + "/params", params_text(resume), 0644)) {
    note(paths.run + "/params: " + error_text(error));
  }
  const Environment environment = environment_of(resume);
  if (!environment.empty()) {
    if (const int error = replace_file(paths.run + "/env", lines_of(environment), 0644)) {
      note(paths.run + "/env: " + error_text(error));
    }
  }
  return failed.empty() ? "ok" : failed;
}

}  // namespace

RandomPool::RandomPool() : fd_(open("/dev/urandom", O_WRONLY | O_CLOEXEC)) {
  if (!fd_) error_ = errno;
}

std::string RandomPool::reseed(std::string_view entropy) const {
  if (entropy.empty()) return "none";
  if (!fd_) return "/dev/urandom: " + error_text(error_);
  // struct rand_pool_info: bits of entropy, bytes, the bytes.
  constexpr size_t kMost = 512;
  const size_t size = std::min(entropy.size(), kMost);
  alignas(rand_pool_info) char buffer[sizeof(rand_pool_info) + kMost];
  const int header[2] = {static_cast<int>(size * 8), static_cast<int>(size)};
  memcpy(buffer, header, sizeof header);
  memcpy(buffer + sizeof header, entropy.data(), size);
  if (ioctl(fd_.get(), RNDADDENTROPY, buffer) != 0) return "RNDADDENTROPY: " + error_text(errno);
  if (ioctl(fd_.get(), RNDRESEEDCRNG) != 0) return "RNDRESEEDCRNG: " + error_text(errno);
  return "ok";
}

std::string set_clock(std::optional<int64_t> wall_ns, Fields& report) {
  if (!wall_ns) return "none";
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  const int64_t step_ns = *wall_ns - (int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec);
  if (std::llabs(step_ns) <= kClockToleranceNs) return "ok";
  const timespec wall{static_cast<time_t>(*wall_ns / 1'000'000'000),
                      static_cast<long>(*wall_ns % 1'000'000'000)};
  if (clock_settime(CLOCK_REALTIME, &wall) != 0) return error_text(errno);
  report["clock_stepped_ns"] = std::to_string(step_ns);
  return "ok";
}

Environment environment_of(const Fields& resume) {
  Environment environment;
  for (auto at = resume.lower_bound("env."); at != resume.end(); ++at) {
    if (!at->first.starts_with("env.")) break;
    environment[at->first.substr(4)] = at->second;
  }
  return environment;
}

std::string params_text(const Fields& resume) { return lines_of(variables_of(resume)); }

void become(const Fields& resume, const IdentityPaths& paths, Fields& report) {
  Laps laps;
  report["identity"] = set_identity(resume, paths);
  report["identity_us"] = std::to_string(laps.end());
  Environment environment = environment_of(resume);
  for (auto& [key, value] : variables_of(resume)) environment[key] = value;
  environment.emplace("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  report["hooks"] = run_hooks(paths.hooks, environment);
  report["hooks_us"] = std::to_string(laps.end());
}

}  // namespace snow::guest
