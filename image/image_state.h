// What an image shows: never changed once it is made. Only for image*.cc.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "image/image.h"
#include "image/sparse_file.h"

namespace snow {

struct Image::State {
  std::vector<std::shared_ptr<Layer>> layers;
  ExtentMap map;

  Result<void> read(uint64_t offset, std::span<std::byte> into) const;

  // Writes what `chosen` layers show to the same offsets of `file`.
  Result<void> copy_to(SparseFile& file, const std::vector<bool>& chosen) const;

  // Leaves out the layers that no extent shows.
  void drop_hidden_layers();
};

}  // namespace snow
