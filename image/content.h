// What lazyfs shows as a file: immutable bytes that can be read at any offset. Memory images, disk
// images and, on other hosts, images that are still being fetched all look like this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"

namespace snow {

class Content {
 public:
  virtual ~Content() = default;

  // In bytes; never changes.
  [[nodiscard]] virtual uint64_t size() const = 0;

  // Fills `into` with the bytes at `offset`; the range lies within size(). Thread-safe, may block
  // (for a source that is slow), and never answers zeros for data that exists: an error means that
  // the bytes are lost for good.
  virtual Result<void> read(uint64_t offset, std::span<std::byte> into) = 0;
};

}  // namespace snow
