#include "qemu/machine_state.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <span>

#include "base/fd.h"
#include "base/file.h"
#include "qemu/jail_files.h"

namespace snow {

namespace {

using nlohmann::json;

// A lost event would otherwise cost the whole timeout.
constexpr int kStatusPollMs = 200;

// Everything, then the end of the stream. QEMU closes early when it refuses the state.
Result<void> send_state(int fd, std::span<const std::byte> state, int64_t deadline_ns) {
  while (!state.empty()) {
    const ssize_t sent = ::send(fd, state.data(), state.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      state = state.subspan(static_cast<size_t>(sent));
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN)
      return fail_errno(Code::guest_failed, "load of the machine state: QEMU hung up");
    const int64_t left_ms = (deadline_ns - monotonic_ns()) / 1'000'000;
    pollfd poll_fd = {fd, POLLOUT, 0};
    if (left_ms <= 0 || ::poll(&poll_fd, 1, static_cast<int>(left_ms)) == 0)
      return fail(Code::timed_out, "load of the machine state: QEMU does not read it");
  }
  ::shutdown(fd, SHUT_WR);
  return {};
}

// True: loaded. False: not yet.
Result<bool> judge(const json& object) {
  const auto status = object.find("status");
  if (status == object.end() || !status->is_string()) return false;
  if (*status == "completed") return true;
  if (*status == "failed" || *status == "cancelled")
    return fail(Code::guest_failed,
                "load of the machine state: QEMU refused it; its log says which device");
  return false;
}

Result<void> wait_until_loaded(Qmp& qmp, Qmp::Watch& watch, int64_t deadline_ns) {
  for (;;) {
    auto event = watch.next(kStatusPollMs);
    json report;
    if (event) {
      report = event->value("data", json::object());
    } else if (event.error().code == Code::timed_out) {
      SNOW_ASSIGN(report, qmp.execute("query-migrate"));
    } else {
      return fail(Code::guest_failed,
                  "load of the machine state: QEMU refused it and ended; see its log");
    }
    if (report.is_object()) {
      SNOW_ASSIGN(const bool loaded, judge(report));
      if (loaded) return {};
    }
    if (monotonic_ns() > deadline_ns)
      return fail(Code::timed_out, "load of the machine state: QEMU is not done in time");
  }
}

}  // namespace

Result<std::vector<std::byte>> save_machine_state(Qmp& qmp, const std::string& host_path,
                                                  const std::string& qemu_path) {
  // live=false leaves the disks active: nothing writes to them while the VM stands still, and a
  // freeze that is given up goes on at once. The default would deactivate them.
  SNOW_TRY(qmp.execute("xen-save-devices-state", {{"filename", qemu_path}, {"live", false}}));
  return take_jail_file(host_path, kMaxStateBytes);
}

Result<Fd> open_incoming(Qmp& qmp, const std::string& incoming_host_path,
                         const std::string& incoming_qemu_path) {
  SNOW_TRY(qmp.execute("migrate-incoming", {{"uri", "unix:" + incoming_qemu_path}}));
  return connect_jail_socket(incoming_host_path);
}

Result<void> load_machine_state(Qmp& qmp, Fd incoming, const std::vector<std::byte>& state,
                                int timeout_ms) {
  const int64_t deadline_ns = monotonic_ns() + int64_t{timeout_ms} * 1'000'000;
  const auto watch = qmp.watch("MIGRATION");
  SNOW_TRY(send_state(incoming.get(), state, deadline_ns));
  return wait_until_loaded(qmp, *watch, deadline_ns);
}

}  // namespace snow
