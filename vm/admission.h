// Admission: how much of the host is promised to VMs, and the limits of that. A fork that the
// limits cannot hold is refused here, before anything is paused.
//
// Pure bookkeeping, no I/O. Thread-safe. Tokens may outlive the Admission.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "base/result.h"

namespace snow {

struct AdmissionLimits {
  uint64_t memory_bytes = 0;  // sum over all VMs
  unsigned vms = 0;
  unsigned vcpus = 0;   // sum over all VMs
  unsigned clones = 0;  // of one fork
};

class Admission {
 public:
  struct State;

  // Room for count() VMs of one shape; given back when it is destroyed. Movable; one thread at a
  // time.
  class Token {
   public:
    Token() = default;
    Token(Token&& other) noexcept;
    Token& operator=(Token&& other) noexcept;
    ~Token();

    [[nodiscard]] unsigned count() const { return count_; }
    [[nodiscard]] uint64_t memory_bytes() const { return memory_bytes_; }  // of one VM
    [[nodiscard]] unsigned cpus() const { return cpus_; }                  // of one VM
    // Moves the room of `count` VMs (at most count()) into a token of its own.
    [[nodiscard]] Token split(unsigned count = 1);
    void release();

   private:
    friend class Admission;
    std::shared_ptr<State> state_;
    uint64_t memory_bytes_ = 0;
    unsigned cpus_ = 0;
    unsigned count_ = 0;
  };

  explicit Admission(const AdmissionLimits& limits);

  struct Demand {
    uint64_t memory_bytes = 0;  // of one VM
    unsigned cpus = 1;          // of one VM
    unsigned count = 1;         // as many as there is room for, ...
    unsigned minimum = 0;       // ... but not fewer than this (0: all of them)
    bool fork = false;          // the limit of one fork counts too
  };
  // Code::invalid: count of 0, minimum above count, or above the limit of one fork. Code::no_room:
  // with the figures and the setting to change. Nothing is reserved on failure.
  Result<Token> reserve(const Demand& demand);

  // What runs already (a daemon that takes over) counts, also beyond the limits.
  Token admit(uint64_t memory_bytes, unsigned cpus, unsigned count = 1);

  struct Usage {
    uint64_t memory_bytes = 0;
    unsigned vms = 0;
    unsigned vcpus = 0;
  };
  [[nodiscard]] Usage usage() const;
  [[nodiscard]] const AdmissionLimits& limits() const;
  // {"limits": {"memory", "vms", "vcpus", "fork"}, "used": {"memory", "vms", "vcpus"}}
  [[nodiscard]] nlohmann::json to_json() const;

 private:
  Token token(const Demand& demand, unsigned count);
  std::shared_ptr<State> state_;
};

}  // namespace snow
