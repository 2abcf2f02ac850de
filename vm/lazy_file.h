// A file in lazyfs and the image that it shows: what QEMUs of one fork map or read. It goes with
// its last user. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "image/image.h"
#include "vm/context.h"

namespace snow {

class LazyFile {
 public:
  // An unbound file of `size` bytes under a new number.
  static Result<std::shared_ptr<LazyFile>> reserve(Context& context, uint64_t size_bytes);
  // Bound at once.
  static Result<std::shared_ptr<LazyFile>> show(Context& context, std::shared_ptr<Image> image);
  // Under the number that it had in an earlier daemon. `image` null: unbound.
  static Result<std::shared_ptr<LazyFile>> restore(Context& context, uint64_t number,
                                                   uint64_t size_bytes,
                                                   std::shared_ptr<Image> image);
  ~LazyFile();

  // Once.
  Result<void> bind(std::shared_ptr<Image> image);

  [[nodiscard]] uint64_t number() const { return number_; }
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] std::string path() const { return context_.lazyfs->path(number_); }
  [[nodiscard]] std::shared_ptr<Image> image() const { return image_; }  // null while unbound

 private:
  LazyFile(Context& context, uint64_t number, uint64_t size_bytes)
      : context_(context), number_(number), size_(size_bytes) {}

  Context& context_;
  const uint64_t number_;
  const uint64_t size_;
  std::shared_ptr<Image> image_;
};

}  // namespace snow
