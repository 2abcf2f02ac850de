// The keeper's and the daemon's message parsers: any bytes are refused or understood, and what is
// understood survives being written and read again.
#include <cstdlib>
#include <string_view>

#include "keeper/protocol.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  (void)snow::request_number(bytes);
  if (const auto request = snow::parse_request(bytes)) {
    const auto text = snow::format_request(*request);
    // Names that the parser leaves out may take more room than what it was given.
    if (!text) return 0;
    const auto again = snow::parse_request(*text);
    if (!again || again->number != request->number || again->operation != request->operation ||
        again->pid != request->pid || again->spec.argv != request->spec.argv) {
      std::abort();
    }
  }
  if (const auto reply = snow::parse_reply(bytes)) {
    const auto again = snow::parse_reply(snow::format_reply(*reply));
    if (again && again->processes.size() != reply->processes.size()) std::abort();
  }
  return 0;
}
