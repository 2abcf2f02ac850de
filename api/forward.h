// The asking side: in a cluster a daemon answers also for what another host has. Its own answer
// comes first; what it does not have is looked for on all live hosts at once, and the request is
// passed on to the one that has it. Lists are put together from all hosts.
//
// Thread-safe. Without a cluster, and for requests that were passed on already, nothing is done.
#pragma once

#include <atomic>
#include <memory>

#include "api/routes.h"
#include "base/result.h"
#include "vm/host.h"

namespace snow::forward {

inline constexpr int kLookMs = 2000;  // a host that has not answered by then is left out

class Forwarder {
 public:
  // Both must outlive it and its replies. A request under way ends when `stopping` becomes true.
  Forwarder(Host& host, const std::atomic<bool>& stopping) : host_(host), stopping_(stopping) {}

  // What the client gets, given what this host answers. Code::unavailable: a host that may have it
  // does not answer, or was lost before it had answered; Code::invalid: several have the name.
  [[nodiscard]] Result<Reply> answer(const Call& call, Result<Reply> local) const;

  // The same for an upload; `local`: as this host refused it.
  [[nodiscard]] Result<std::unique_ptr<Upload>> upload(const Call& call, const Error& local) const;

 private:
  using NeighboursPtr = std::shared_ptr<Neighbours>;
  Result<std::string> holder_of(const NeighboursPtr& neighbours, const Call& call,
                                const Error& local) const;
  [[nodiscard]] bool is_here(const Call& call) const;
  Result<Reply> list(const NeighboursPtr& neighbours, const Call& call, Reply local) const;
  Result<Reply> look_at_host(const NeighboursPtr& neighbours, const Call& call, Reply local) const;

  Host& host_;
  const std::atomic<bool>& stopping_;
};

}  // namespace snow::forward
