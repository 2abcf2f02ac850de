#include "base/file.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "base/fd.h"

namespace snow {

Result<std::string> read_file(const std::string& path, size_t limit_bytes) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return fail_errno(errno == ENOENT ? Code::not_found : Code::host_failed, "{}: cannot open",
                      path);
  }
  std::string content;
  char buffer[65536];
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(Code::host_failed, "{}: read failed", path);
    if (got == 0) return content;
    content.append(buffer, static_cast<size_t>(got));
    if (content.size() > limit_bytes) {
      return fail(Code::invalid, "{}: longer than {} bytes", path, limit_bytes);
    }
  }
}

Result<void> write_file(const std::string& path, std::string_view content, unsigned mode) {
  const std::string beside = path + "." + random_hex(4) + ".new";
  Fd fd(::open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
  if (!fd) return fail_errno(Code::host_failed, "{}: cannot create", beside);
  auto written = write_all(fd.get(), std::as_bytes(std::span(content)), beside);
  if (written && ::fdatasync(fd.get()) < 0) {
    written = fail_errno(Code::host_failed, "{}: sync failed", beside);
  }
  fd.reset();
  if (written && ::rename(beside.c_str(), path.c_str()) < 0) {
    written = fail_errno(Code::host_failed, "{}: cannot rename to it", path);
  }
  if (!written) ::unlink(beside.c_str());
  return written;
}

Result<void> make_folders(const std::string& path, unsigned mode) {
  std::error_code error;
  const bool made = std::filesystem::create_directories(path, error);
  if (error) return fail(Code::host_failed, "{}: cannot create folder: {}", path, error.message());
  if (made && ::chmod(path.c_str(), mode) < 0) {
    return fail_errno(Code::host_failed, "{}: chmod failed", path);
  }
  return {};
}

void remove_all(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
}

std::vector<std::byte> random_bytes(size_t count) {
  std::vector<std::byte> bytes(count);
  size_t done = 0;
  while (done < count) {
    const ssize_t got = ::getrandom(bytes.data() + done, count - done, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) std::abort();  // cannot happen on a kernel that has the call
    done += static_cast<size_t>(got);
  }
  return bytes;
}

std::string random_hex(size_t bytes) {
  std::string text;
  for (const std::byte byte : random_bytes(bytes)) {
    text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  }
  return text;
}

std::string random_uuid() {
  std::string hex = random_hex(16);
  hex[12] = '4';
  hex[16] = "89ab"[static_cast<size_t>(hex[16]) % 4];
  return hex.substr(0, 8) + "-" + hex.substr(8, 4) + "-" + hex.substr(12, 4) + "-" +
         hex.substr(16, 4) + "-" + hex.substr(20);
}

namespace {
int64_t clock_ns(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}
}  // namespace

int64_t monotonic_ns() { return clock_ns(CLOCK_MONOTONIC); }
int64_t wall_clock_ns() { return clock_ns(CLOCK_REALTIME); }

}  // namespace snow
