// Upgraded connections (exec, console) across two daemons: the client's socket at one, the guest's
// stream at the other, pieces of bytes between them.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "base/result.h"
#include "peer/connection.h"

namespace snow::forward {

// At the host that has the VM. `upgraded` is Reply::upgraded; it gets a socket whose other end is
// joined to the connection. Returns when both are over: an asker that goes counts as a client that
// went. The connection is interrupted then.
void serve_upgraded(peer::Connection& connection,
                    const std::function<void(int, std::string)>& upgraded,
                    const std::atomic<bool>& stopping);

// At the host that the client asked: `fd` is the client's blocking socket, which stays the
// caller's. Returns when the other host has ended the stream, or the client or the host has gone; a
// client whose host is lost is told so by a control frame. `is_live` is asked now and then whether
// the host still is. The connection is interrupted then.
void relay_upgraded(int fd, std::string early, peer::Connection& connection,
                    const std::function<Result<void>()>& is_live);

}  // namespace snow::forward
