// Fields that decode encode to the same bytes, and each can be read from the encoded form.
#include <cstdlib>

#include "guest/channel/message.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace snow::channel;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto fields = decode_fields(bytes);
  if (fields && encode_fields(*fields) != bytes) abort();
  if (fields) {
    for (const auto& [key, value] : *fields) {
      number_field(*fields, key);
      if (field_in(bytes, key) != value) abort();
    }
  }
  field_in(bytes, "index");
  return 0;
}
