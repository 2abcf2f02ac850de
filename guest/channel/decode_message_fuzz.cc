// A message that decodes encodes to the same bytes.
#include <cstdlib>

#include "guest/channel/message.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace snow::channel;
  std::string bytes(reinterpret_cast<const char*>(data), size);
  const auto check = [](std::string_view input) {
    const auto message = decode_message(input);
    if (message && encode_message(*message) != input) abort();
  };
  check(bytes);
  // Behind a right CRC, where random bytes hardly ever get.
  const uint32_t crc = crc32c(bytes);
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>((crc >> (8 * i)) & 0xff));
  check(bytes);
  return 0;
}
