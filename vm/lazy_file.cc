#include "vm/lazy_file.h"

#include <cstring>

#include "base/file.h"

namespace snow {
namespace {

// 48 random bits: no counter to keep, and no number is ever used twice.
uint64_t new_number() {
  uint64_t number = 0;
  while (number < 2) {
    const auto bytes = random_bytes(6);
    std::memcpy(&number, bytes.data(), bytes.size());
  }
  return number;
}

}  // namespace

Result<std::shared_ptr<LazyFile>> LazyFile::restore(Context& context, uint64_t number,
                                                    uint64_t size_bytes,
                                                    std::shared_ptr<Image> image) {
  SNOW_TRY(context.lazyfs->add(number, size_bytes));
  std::shared_ptr<LazyFile> file(new LazyFile(context, number, size_bytes));
  if (image) SNOW_TRY(file->bind(std::move(image)));
  return file;
}

Result<std::shared_ptr<LazyFile>> LazyFile::reserve(Context& context, uint64_t size_bytes) {
  return restore(context, new_number(), size_bytes, nullptr);
}

Result<std::shared_ptr<LazyFile>> LazyFile::show(Context& context, std::shared_ptr<Image> image) {
  const uint64_t size = image->size();
  return restore(context, new_number(), size, std::move(image));
}

LazyFile::~LazyFile() {
  if (!context_.leaving) context_.lazyfs->remove(number_);
}

Result<void> LazyFile::bind(std::shared_ptr<Image> image) {
  SNOW_TRY(context_.lazyfs->bind(number_, image));
  image_ = std::move(image);
  return {};
}

}  // namespace snow
