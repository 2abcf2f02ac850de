// Faults on purpose, for the tests of what a killed process does. The setting `fault` is a list
// "STEP:WHO,STEP:WHO,...": when the daemon gets to the first STEP, it kills WHO, and only then the
// second entry counts. WHO is one or more, joined by "+", of daemon, old (the QEMU that is frozen),
// shell (the parent's next QEMU) and clone (one clone's QEMU). The steps are where at() is called
// in vm/; CONTRIBUTING.md lists them. Off (empty) unless a test sets it. Thread-safe.
#pragma once

#include <sys/types.h>

#include <deque>
#include <initializer_list>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace snow {

class Fault {
 public:
  void set(std::string_view list);  // before any at()
  // Returns when those that it killed are dead (or held as dead by the keeper).
  void at(std::string_view step, std::initializer_list<std::pair<std::string_view, pid_t>> qemus);

 private:
  std::mutex mutex_;
  std::deque<std::string> faults_;
};

}  // namespace snow
