// Request bodies, control frames and the stream's framing must take any bytes. The first byte
// chooses the parser.
#include <cstdlib>

#include "api/frame.h"
#include "api/request.h"
#include "api/text.h"
#include "base/names.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace snow;
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data + 1), size - 1);
  switch (data[0] % 11) {
    case 0:
      if (const auto run = parse_run(body); run && run->image.empty() == run->from.empty()) abort();
      break;
    case 1:
      if (const auto import = parse_import(body); import && !check_name("image", import->name))
        abort();
      break;
    case 2:
      if (const auto fork = parse_fork(body, "web"); fork && fork->count > 65535) abort();
      break;
    case 3:
      if (const auto exec = parse_exec(body); exec && exec->argv.empty()) abort();
      break;
    case 4:
      (void)parse_control(body);
      break;
    case 5:
      (void)parse_reserve(body);
      (void)parse_stop(body);
      (void)parse_join(body);
      break;
    case 6:
      (void)parse_size("size", body);
      (void)parse_key_value("pair", body);
      break;
    case 7:
      if (const auto name = parse_snapshot(body); name && !check_name("snapshot", *name)) abort();
      break;
    case 8:
      if (const auto made = parse_cluster(body); made && made->etcd.size() > 16) abort();
      (void)parse_join_cluster(body);
      break;
    case 9:
      (void)parse_token(body);
      (void)parse_drain(body);
      (void)parse_detach(body);
      break;
    default: {
      FrameReader reader;
      reader.feed(body);
      for (;;) {
        const auto frame = reader.next();
        if (!frame || !*frame) break;
        if ((*frame)->bytes.size() > kMaxFrameBytes) abort();
      }
    }
  }
  return 0;
}
