// What happens on an upgraded connection: frames (api/frame.h) between a client's socket and a
// program or console in the guest. Two threads per connection: the caller's, guest to client, and
// one of its own, client to guest.
#pragma once

#include <string>

#include "guestlink/link.h"
#include "vm/host.h"

namespace snow {

// Returns when the program has ended and the client knows, or the client has gone: then the program
// has been killed. `early` is what the client had sent already. `fd` is a blocking socket and stays
// the caller's; shutting it down from another thread counts as the client going.
void serve_exec(int fd, std::string early, GuestStream& stream);

// Returns when the VM has ended or the client has gone.
void serve_console(int fd, std::string early, Host::ConsoleSession& session);

}  // namespace snow
