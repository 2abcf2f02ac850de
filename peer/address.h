// Where a daemon listens: a numeric IP address and a port. Names are not resolved here.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace snow::peer {

struct Address {
  std::string ip;  // "10.0.0.7", "fd00::7"
  uint16_t port = 0;
  bool operator==(const Address&) const = default;
};

// "10.0.0.7:7171" or "[fd00::7]:7171". Anything else is Code::invalid.
Result<Address> parse_address(std::string_view text);
std::string to_text(const Address& address);

// 127.0.0.0/8, ::1, and 127.0.0.0/8 mapped into IPv6. A malformed address is none.
bool is_loopback(const Address& address);

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
};
Result<SocketAddress> to_socket_address(const Address& address);
Address from_socket_address(const sockaddr_storage& storage);

}  // namespace snow::peer
