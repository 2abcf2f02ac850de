// Any text as an image's record: no crash; one that is accepted can be read, and comes back.
#include <sys/mman.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "image/image.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace snow;
  static const std::shared_ptr<Layer> layer = [] {
    Fd fd(::memfd_create("image_json_fuzz", MFD_CLOEXEC));
    if (::ftruncate(fd.get(), 10000) != 0) std::abort();
    return FileLayer::adopt(std::move(fd), "layer", false).value();
  }();
  const auto json = nlohmann::json::parse(data, data + size, nullptr, false);
  const auto image =
      Image::from_json(json, [](const std::string& path) -> Result<std::shared_ptr<Layer>> {
        if (path == "none") return fail(Code::not_found, "none");
        return layer;
      });
  if (!image) return 0;
  const uint64_t length = std::min<uint64_t>((*image)->size(), 20000);
  std::vector<std::byte> bytes(length);
  if (!(*image)->read(0, bytes)) std::abort();
  if (!(*image)->read((*image)->size() - length, bytes)) std::abort();
  const auto record = (*image)->to_json().value();
  const auto again = Image::from_json(
      record, [](const std::string&) { return Result<std::shared_ptr<Layer>>(layer); });
  if (!again || (*again)->to_json().value() != record) std::abort();
  return 0;
}
