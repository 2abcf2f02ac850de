#include <sys/socket.h>
#include <sys/uio.h>

#include <cstring>
#include <string>

#include "keeper/protocol.h"

namespace snow {
namespace {

// Room for one descriptor. A peer that sends more has the rest discarded by the kernel.
union Control {
  cmsghdr align;
  char bytes[CMSG_SPACE(sizeof(int))];
};

}  // namespace

Result<void> send_packet(int socket, std::string_view text, int fd) {
  iovec part{const_cast<char*>(text.data()), text.size()};
  Control control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  for (;;) {
    if (::sendmsg(socket, &message, MSG_NOSIGNAL) >= 0) return {};
    if (errno == EAGAIN) return fail(Code::timed_out, "keeper connection: not writable now");
    if (errno != EINTR) return fail_errno(Code::unavailable, "keeper connection: send");
  }
}

Result<Packet> receive_packet(int socket) {
  Packet packet;
  packet.text.resize(kMaxPacketBytes);
  iovec part{packet.text.data(), packet.text.size()};
  Control control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof control.bytes;
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    return fail(Code::timed_out, "keeper connection: nothing to read");
  }
  if (got < 0) return fail_errno(Code::unavailable, "keeper connection: receive");
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(int))) {
      int fd = -1;
      memcpy(&fd, CMSG_DATA(header), sizeof fd);
      packet.fd.reset(fd);
    }
  }
  if ((message.msg_flags & MSG_TRUNC) != 0) {
    return fail(Code::corrupt, "keeper connection: a packet over {} bytes", kMaxPacketBytes);
  }
  packet.end = got == 0;
  packet.text.resize(static_cast<size_t>(got));
  return packet;
}

}  // namespace snow
