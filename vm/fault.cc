#include "vm/fault.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>

#include "base/file.h"
#include "base/log.h"

namespace snow {
namespace {

constexpr int kDeathChecks = 500;  // of 10 ms

// Gone, a zombie without threads that still end, or stopped at its exit by the keeper.
bool is_dead(pid_t pid) {
  const auto text = read_file("/proc/" + std::to_string(pid) + "/status");
  if (!text) return true;
  const auto says = [&](const char* line) { return text->find(line) != std::string::npos; };
  return says("State:\tt") || says("State:\tX") || (says("State:\tZ") && says("Threads:\t1\n"));
}

}  // namespace

void Fault::set(std::string_view list) {
  while (!list.empty()) {
    const size_t end = std::min(list.find(','), list.size());
    faults_.emplace_back(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
}

void Fault::at(std::string_view step,
               std::initializer_list<std::pair<std::string_view, pid_t>> qemus) {
  const std::lock_guard lock(mutex_);
  if (faults_.empty() || !faults_.front().starts_with(std::string(step) + ":")) return;
  const std::string fault = std::move(faults_.front());
  faults_.pop_front();
  const std::string who = "+" + fault.substr(step.size() + 1) + "+";
  const auto meant = [&](std::string_view name) {
    return who.find("+" + std::string(name) + "+") != std::string::npos;
  };
  for (const auto& [name, pid] : qemus) {
    if (!meant(name) || pid <= 0) continue;
    log_warn("fault {}: {} ({}) is killed", fault, name, pid);
    ::kill(pid, SIGKILL);
    for (int i = 0; i < kDeathChecks && !is_dead(pid); ++i) ::usleep(10'000);
  }
  if (!meant("daemon")) return;
  log_warn("fault {}: the daemon is killed", fault);
  ::kill(::getpid(), SIGKILL);
}

}  // namespace snow
