// Whatever came before, a whole frame after a zero byte is read; and cuts change nothing. The local
// reader gets the same bytes.
#include <cstdlib>

#include "guest/channel/message.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace snow::channel;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  FrameReader whole;
  FrameReader cut;
  std::vector<Message> from_whole;
  std::vector<Message> from_cut;
  whole.feed(bytes, from_whole);
  for (size_t i = 0; i < size; ++i) cut.feed(bytes.substr(i, 1), from_cut);
  if (from_whole.size() != from_cut.size() || whole.dropped() != cut.dropped()) abort();
  const size_t before = from_whole.size();
  whole.feed(std::string(1, '\0') + encode_frame({Type::ask, 3, "end"}), from_whole);
  if (from_whole.size() <= before || from_whole.back().payload != "end") abort();
  LocalReader local;
  std::vector<Message> from_local;
  (void)local.feed(bytes, from_local);
  return 0;
}
