// What another daemon sends must be taken, whatever it is: requests passed on, and replies. The
// first byte chooses which.
#include <cstdlib>

#include "api/forward_message.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace snow;
  using namespace snow::forward;
  if (size == 0) return 0;
  const auto payload = std::as_bytes(std::span(data + 1, size - 1));
  if (data[0] % 2 == 0) {
    const auto request = decode_request(payload);
    if (!request) return 0;
    std::string name;
    const Call& call = request->call;
    if (!call.forwarded || reach_of(call, name) == Reach::here) abort();
    if (call.caller.uid == 0 || call.body.size() > kMaxBodyBytes) abort();
    auto again = encode_request(call, request->upload);
    const auto* body = reinterpret_cast<const std::byte*>(call.body.data());
    again.insert(again.end(), body, body + call.body.size());
    // What is not UTF-8 in a path is not the same any more; what comes of it is.
    const auto second = decode_request(again);
    if (!second || second->call.body != call.body) abort();
  } else if (const auto reply = decode_reply(payload)) {
    if (reply->status < 200 || reply->status > 599) abort();
    const auto second = decode_reply(encode_reply(*reply));
    if (!second || second->kind != reply->kind || second->body != reply->body) abort();
  }
  return 0;
}
