// The MAC of the first Ethernet interface, by ioctl: a netlink library would be larger than the
// agent.
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "guest/agent/identity.h"
#include "guest/agent/util.h"

namespace snow::guest {

namespace {

// Lowest index of those with type Ethernet; "" if there is none.
std::string first_ethernet() {
  std::string best;
  long best_index = 0;
  const std::string base = "/sys/class/net/";
  for (const std::string& name : list_directory(base)) {
    const auto type = read_small_file(base + name + "/type");
    const auto index = read_small_file(base + name + "/ifindex");
    if (!type || !index || atoi(type->c_str()) != ARPHRD_ETHER) continue;
    const long number = atol(index->c_str());
    if (best.empty() || number < best_index) {
      best = name;
      best_index = number;
    }
  }
  return best;
}

// IPv4 routes through a gateway on this interface, which it loses when it goes down.
std::vector<rtentry> gateway_routes(const std::string& interface) {
  std::vector<rtentry> routes;
  const auto text = read_small_file("/proc/net/route");
  for (const std::string& line : split(text.value_or(""), '\n')) {
    char name[64];
    unsigned destination = 0;
    unsigned gateway = 0;
    unsigned flags = 0;
    unsigned mask = 0;
    int metric = 0;
    if (sscanf(line.c_str(), "%63s %x %x %x %*d %*d %d %x", name, &destination, &gateway, &flags,
               &metric, &mask) != 6) {
      continue;
    }
    if (interface != name || (flags & RTF_GATEWAY) == 0) continue;
    rtentry route{};
    const auto fill = [](sockaddr& out, unsigned address) {
      sockaddr_in in{};
      in.sin_family = AF_INET;
      in.sin_addr.s_addr = address;
      memcpy(&out, &in, sizeof in);
    };
    fill(route.rt_dst, destination);
    fill(route.rt_gateway, gateway);
    fill(route.rt_genmask, mask);
    route.rt_flags = static_cast<unsigned short>(flags);
    route.rt_metric = static_cast<short>(metric + 1);
    routes.push_back(route);
  }
  return routes;
}

}  // namespace

std::string set_mac(const std::string& mac) {
  unsigned bytes[6];
  if (sscanf(mac.c_str(), "%2x:%2x:%2x:%2x:%2x:%2x", &bytes[0], &bytes[1], &bytes[2], &bytes[3],
             &bytes[4], &bytes[5]) != 6) {
    return "mac '" + mac + "': malformed";
  }
  const std::string name = first_ethernet();
  if (name.empty()) return "mac: there is no Ethernet interface";
  const Fd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq address{};
  ifreq flags{};
  name.copy(address.ifr_name, IFNAMSIZ - 1);
  name.copy(flags.ifr_name, IFNAMSIZ - 1);
  if (ioctl(fd.get(), SIOCGIFHWADDR, &address) != 0) {
    return "mac of " + name + ": " + error_text(errno);
  }
  const ifreq before = address;
  for (int i = 0; i < 6; ++i) address.ifr_hwaddr.sa_data[i] = static_cast<char>(bytes[i]);
  if (memcmp(before.ifr_hwaddr.sa_data, address.ifr_hwaddr.sa_data, 6) == 0) return "";
  if (ioctl(fd.get(), SIOCSIFHWADDR, &address) == 0) return "";
  if (errno != EBUSY || ioctl(fd.get(), SIOCGIFFLAGS, &flags) != 0) {
    return "mac of " + name + ": " + error_text(errno);
  }
  std::vector<rtentry> routes = gateway_routes(name);
  flags.ifr_flags = static_cast<short>(flags.ifr_flags & ~IFF_UP);
  int error = ioctl(fd.get(), SIOCSIFFLAGS, &flags) != 0 ? errno : 0;
  if (ioctl(fd.get(), SIOCSIFHWADDR, &address) != 0 && error == 0) error = errno;
  flags.ifr_flags = static_cast<short>(flags.ifr_flags | IFF_UP);
  if (ioctl(fd.get(), SIOCSIFFLAGS, &flags) != 0 && error == 0) error = errno;
  for (rtentry& route : routes) {
    if (ioctl(fd.get(), SIOCADDRT, &route) != 0 && errno != EEXIST && error == 0) error = errno;
  }
  return error == 0 ? "" : "mac of " + name + ": " + error_text(error);
}

}  // namespace snow::guest
