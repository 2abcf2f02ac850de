#include "vm/admission.h"

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

namespace snow {
namespace {

std::string mebibytes(uint64_t bytes) { return fmt::format("{} MiB", bytes >> 20); }

// How many of `unit` fit between `used` and `limit`.
uint64_t fits(uint64_t used, uint64_t limit, uint64_t unit) {
  if (used >= limit) return unit == 0 ? UINT64_MAX : 0;
  return unit == 0 ? UINT64_MAX : (limit - used) / unit;
}

}  // namespace

struct Admission::State {
  explicit State(const AdmissionLimits& the_limits) : limits(the_limits) {}
  const AdmissionLimits limits;
  std::mutex mutex;
  Usage usage;
};

Admission::Token::Token(Token&& other) noexcept
    : state_(std::move(other.state_)),
      memory_bytes_(other.memory_bytes_),
      cpus_(other.cpus_),
      count_(std::exchange(other.count_, 0)) {}

Admission::Token& Admission::Token::operator=(Token&& other) noexcept {
  if (this != &other) {
    release();
    state_ = std::move(other.state_);
    memory_bytes_ = other.memory_bytes_;
    cpus_ = other.cpus_;
    count_ = std::exchange(other.count_, 0);
  }
  return *this;
}

Admission::Token::~Token() { release(); }

void Admission::Token::release() {
  if (state_ == nullptr || count_ == 0) return;
  const std::lock_guard lock(state_->mutex);
  state_->usage.memory_bytes -= memory_bytes_ * count_;
  state_->usage.vcpus -= cpus_ * count_;
  state_->usage.vms -= count_;
  count_ = 0;
}

Admission::Token Admission::Token::split(unsigned count) {
  Token part;
  part.state_ = state_;
  part.memory_bytes_ = memory_bytes_;
  part.cpus_ = cpus_;
  part.count_ = std::min(count, count_);
  count_ -= part.count_;
  return part;
}

Admission::Admission(const AdmissionLimits& limits) : state_(std::make_shared<State>(limits)) {}

Admission::Token Admission::token(const Demand& demand, unsigned count) {
  Token made;
  made.state_ = state_;
  made.memory_bytes_ = demand.memory_bytes;
  made.cpus_ = demand.cpus;
  made.count_ = count;
  state_->usage.memory_bytes += demand.memory_bytes * count;
  state_->usage.vcpus += demand.cpus * count;
  state_->usage.vms += count;
  return made;
}

Result<Admission::Token> Admission::reserve(const Demand& demand) {
  const AdmissionLimits& limits = state_->limits;
  const char* const what = demand.fork ? "clones" : "VMs";
  if (demand.count == 0) return fail(Code::invalid, "0 {} asked for; ask for at least 1", what);
  const unsigned minimum = demand.minimum == 0 ? demand.count : demand.minimum;
  if (minimum > demand.count) {
    return fail(Code::invalid, "at least {} of {} {} asked for; the minimum cannot be above it",
                minimum, demand.count, what);
  }
  if (demand.fork && demand.count > limits.clones) {
    return fail(Code::invalid,
                "{} clones asked for, one fork may make {}; ask for fewer or raise fork_limit",
                demand.count, limits.clones);
  }
  const std::lock_guard lock(state_->mutex);
  const Usage& used = state_->usage;
  struct Line {
    uint64_t room;
    std::string text;
  };
  const Line lines[] = {
      {fits(used.vms, limits.vms, 1),
       fmt::format("{} of {} VMs exist; remove some or raise vm_limit", used.vms, limits.vms)},
      {fits(used.memory_bytes, limits.memory_bytes, demand.memory_bytes),
       fmt::format("{} of {} are promised to VMs and each needs {}; stop some or raise "
                   "memory_limit",
                   mebibytes(used.memory_bytes), mebibytes(limits.memory_bytes),
                   mebibytes(demand.memory_bytes))},
      {fits(used.vcpus, limits.vcpus, demand.cpus),
       fmt::format("{} of {} vCPUs are promised to VMs and each needs {}; stop some or raise "
                   "vcpu_limit",
                   used.vcpus, limits.vcpus, demand.cpus)},
  };
  const Line& tightest =
      *std::min_element(std::begin(lines), std::end(lines),
                        [](const Line& a, const Line& b) { return a.room < b.room; });
  if (tightest.room < minimum) {
    return fail(Code::no_room, "no room for {} {}, only for {}: {}", minimum, what, tightest.room,
                tightest.text);
  }
  return token(demand, static_cast<unsigned>(std::min<uint64_t>(demand.count, tightest.room)));
}

Admission::Token Admission::admit(uint64_t memory_bytes, unsigned cpus, unsigned count) {
  const std::lock_guard lock(state_->mutex);
  return token(Demand{.memory_bytes = memory_bytes, .cpus = cpus}, count);
}

Admission::Usage Admission::usage() const {
  const std::lock_guard lock(state_->mutex);
  return state_->usage;
}

const AdmissionLimits& Admission::limits() const { return state_->limits; }

nlohmann::json Admission::to_json() const {
  const Usage used = usage();
  const AdmissionLimits& limits = state_->limits;
  return {{"limits",
           {{"memory", limits.memory_bytes},
            {"vms", limits.vms},
            {"vcpus", limits.vcpus},
            {"fork", limits.clones}}},
          {"used", {{"memory", used.memory_bytes}, {"vms", used.vms}, {"vcpus", used.vcpus}}}};
}

}  // namespace snow
