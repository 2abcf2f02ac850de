#include "peer/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <charconv>
#include <cstring>

namespace snow::peer {

Result<Address> parse_address(std::string_view text) {
  const auto wrong = [&] {
    return fail(Code::invalid, "address '{}': not IP:PORT, as in 10.0.0.7:7171 or [fd00::7]:7171",
                text);
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return wrong();
  std::string_view ip = text.substr(0, colon);
  const std::string_view digits = text.substr(colon + 1);
  if (ip.size() > 2 && ip.front() == '[' && ip.back() == ']') {
    ip = ip.substr(1, ip.size() - 2);
  } else if (ip.find(':') != std::string_view::npos) {
    return wrong();  // without brackets nobody can tell where the port begins
  }
  Address address{std::string(ip), 0};
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), address.port);
  if (error != std::errc() || end != digits.data() + digits.size() || address.port == 0) {
    return wrong();
  }
  if (!to_socket_address(address)) return wrong();
  return address;
}

std::string to_text(const Address& address) {
  const bool six = address.ip.find(':') != std::string::npos;
  return six ? fmt::format("[{}]:{}", address.ip, address.port)
             : fmt::format("{}:{}", address.ip, address.port);
}

bool is_loopback(const Address& address) {
  const auto known = to_socket_address(address);
  if (!known) return false;
  if (known->storage.ss_family == AF_INET) {
    sockaddr_in four{};
    std::memcpy(&four, &known->storage, sizeof four);
    return ntohl(four.sin_addr.s_addr) >> 24 == 127;
  }
  sockaddr_in6 six{};
  std::memcpy(&six, &known->storage, sizeof six);
  return IN6_IS_ADDR_LOOPBACK(&six.sin6_addr) ||
         (IN6_IS_ADDR_V4MAPPED(&six.sin6_addr) && six.sin6_addr.s6_addr[12] == 127);
}

Result<SocketAddress> to_socket_address(const Address& address) {
  SocketAddress result;
  sockaddr_in four{};
  sockaddr_in6 six{};
  if (::inet_pton(AF_INET, address.ip.c_str(), &four.sin_addr) == 1) {
    four.sin_family = AF_INET;
    four.sin_port = htons(address.port);
    std::memcpy(&result.storage, &four, sizeof four);
    result.length = sizeof four;
  } else if (::inet_pton(AF_INET6, address.ip.c_str(), &six.sin6_addr) == 1) {
    six.sin6_family = AF_INET6;
    six.sin6_port = htons(address.port);
    std::memcpy(&result.storage, &six, sizeof six);
    result.length = sizeof six;
  } else {
    return fail(Code::invalid, "address '{}': not a numeric IP address", address.ip);
  }
  return result;
}

Address from_socket_address(const sockaddr_storage& storage) {
  char text[INET6_ADDRSTRLEN] = "";
  if (storage.ss_family == AF_INET) {
    sockaddr_in four{};
    std::memcpy(&four, &storage, sizeof four);
    ::inet_ntop(AF_INET, &four.sin_addr, text, sizeof text);
    return {text, ntohs(four.sin_port)};
  }
  sockaddr_in6 six{};
  std::memcpy(&six, &storage, sizeof six);
  ::inet_ntop(AF_INET6, &six.sin6_addr, text, sizeof text);
  return {text, ntohs(six.sin6_port)};
}

}  // namespace snow::peer
