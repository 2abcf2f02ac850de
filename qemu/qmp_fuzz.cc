// The QMP parser over any bytes, in one piece and cut: the same messages, within the limits.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "qemu/qmp_parser.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  snow::QmpParser whole;
  std::vector<nlohmann::json> messages;
  const bool good = whole.feed(bytes, messages).has_value();

  snow::QmpParser cut;
  std::vector<nlohmann::json> again;
  bool cut_good = true;
  const size_t step = size % 13 + 1;
  for (size_t at = 0; at < size && cut_good; at += step)
    cut_good = cut.feed(bytes.substr(at, step), again).has_value();
  if (good != cut_good || messages.size() != again.size()) std::abort();
  for (size_t i = 0; i < messages.size(); ++i) {
    // Copies and prints by recursion: must not overflow the stack.
    if (nlohmann::json(messages[i]).dump() != again[i].dump()) std::abort();
  }
  return 0;
}
