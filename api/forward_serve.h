// The answering side: requests that other daemons pass on to this one.
#pragma once

#include <atomic>

#include "api/routes.h"
#include "peer/connection.h"

namespace snow::forward {

// Answers one request after the other until the connection ends or `stopping` becomes true (noticed
// within half a second, but a request under way is finished). For this host only: what it does not
// have it does not look for elsewhere. For Host::serve_api; many may run at once.
void serve(peer::Connection& connection, const Routes& routes, const std::atomic<bool>& stopping);

}  // namespace snow::forward
