// Feeds a session what a guest might send, as raw bytes and as well-formed messages of any kind,
// while the host has streams open, answers calls and freezes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "guestlink/session.h"

namespace {

using namespace snow;

constexpr channel::Type kTypes[] = {
    channel::Type::hello, channel::Type::prepared, channel::Type::ready,   channel::Type::call,
    channel::Type::data,  channel::Type::eof,      channel::Type::credit,  channel::Type::closed,
    channel::Type::ask,   channel::Type::open,     channel::Type::refused, channel::Type::answer};

void check(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  std::string_view input(reinterpret_cast<const char*>(bytes), size);
  std::vector<std::shared_ptr<GuestCall>> calls;
  auto caller = std::make_shared<LinkSession::Caller>();
  caller->callbacks.on_call = [&](std::shared_ptr<GuestCall> call) { calls.push_back(call); };
  auto session = std::make_shared<LinkSession>(caller, GuestLink::Start::boot);
  session->receive(
      {.messages = {{channel::Type::hello, 0, channel::encode_fields({{"version", "1"}})}}});
  std::vector<std::shared_ptr<StreamState>> streams;
  for (const char* kind : {"exec", "read"}) {
    if (auto stream = session->open({{"kind", kind}}, kind)) streams.push_back(*stream);
  }
  channel::FrameReader reader;
  while (!input.empty()) {
    const auto op = static_cast<uint8_t>(input[0]);
    const size_t length =
        std::min<size_t>(input.size() - 1, input.size() > 1 ? static_cast<uint8_t>(input[1]) : 0);
    const std::string payload(input.substr(1, length));
    input.remove_prefix(1 + length);
    LinkSession::Received received;
    if (op < 32) {
      reader.feed(payload, received.messages);
    } else {
      const uint32_t number = op % 3 == 0 && !streams.empty() ? streams[0]->number : op % 9;
      received.messages.push_back({kTypes[op % std::size(kTypes)], number, payload});
      if (op >= 128) {
        received.messages.push_back({channel::Type::call, op | 1u,
                                     channel::encode_fields({{"call", op % 2 ? "exit" : "join"}})});
      }
    }
    session->receive(received);
    switch (op % 11) {
      case 0:
        for (const auto& stream : streams) (void)session->read(*stream, 0);
        break;
      case 1:
        if (!calls.empty()) calls.back()->answer({{"count", "1"}}, std::string(op, 'p'));
        break;
      case 2:
        calls.clear();
        break;
      case 3:
        (void)session->prepare(0);
        break;
      case 4:
        if (!session->resume_begun()) session->begin_resume({});
        if (op % 2 == 0) (void)session->finish_resume(0);
        break;
      default:
        break;
    }
    check(calls.size() <= LinkSession::kCalls);
  }
  for (const auto& stream : streams) session->close(*stream);
  calls.clear();
  session->shut_down();
  return 0;
}
