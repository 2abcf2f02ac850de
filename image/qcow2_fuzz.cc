// Any bytes as a qcow2 overlay: no crash, and a map that is accepted can be read.
#include <sys/mman.h>

#include <cstdlib>

#include "image/image.h"
#include "image/qcow2.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace snow;
  Fd fd(::memfd_create("qcow2_fuzz", MFD_CLOEXEC));
  if (!write_all_at(fd.get(), 0, std::as_bytes(std::span(data, size)), "input")) std::abort();
  const auto map = read_qcow2_map(fd.get(), "input");
  if (!map) return 0;
  const auto layer = FileLayer::adopt(std::move(fd), "input", false).value();
  const auto image = Image(map->virtual_size, {}, ExtentMap()).with_layer(layer, map->extents);
  std::byte page[512];
  for (const Extent& extent : map->extents) {
    const uint64_t length = std::min<uint64_t>(extent.length, sizeof page);
    if (!image->read(extent.end() - length, std::span(page).first(length))) std::abort();
  }
  return 0;
}
