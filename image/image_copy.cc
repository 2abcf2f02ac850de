// Where an image's bytes are copied: merge_layers and write_to.
#include <algorithm>

#include "image/image_state.h"

namespace snow {
namespace {

constexpr size_t kCopyBytes = size_t{1} << 20;  // per read and write

// The private layers to merge, so that at most `limit` are left if that can be. Empty: nothing to
// do.
std::vector<bool> choose(const std::vector<std::shared_ptr<Layer>>& layers, const ExtentMap& map,
                         size_t limit, const std::function<bool(const Layer&)>& is_private) {
  std::vector<uint64_t> shown(layers.size());
  for (const Extent& extent : map.extents()) shown[extent.layer] += extent.length;
  std::vector<bool> chosen(layers.size());
  size_t count = 0;
  size_t largest = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    chosen[i] = is_private(*layers[i]);
    if (!chosen[i]) continue;
    if (count == 0 || shown[i] > shown[largest]) largest = i;
    ++count;
  }
  // Merging all but the largest leaves two layers of these.
  if (count > 2 && layers.size() - count + 2 <= limit) {
    chosen[largest] = false;
    --count;
  }
  return count < 2 ? std::vector<bool>() : chosen;
}

}  // namespace

Result<void> Image::State::copy_to(SparseFile& file, const std::vector<bool>& chosen) const {
  std::vector<std::byte> buffer(kCopyBytes);
  const auto& extents = map.extents();
  // Pieces that touch are read together and written as one, whichever layers they come from.
  uint64_t begin = 0;
  size_t filled = 0;
  for (const Extent& extent : extents) {
    if (!chosen[extent.layer]) continue;
    uint64_t done = 0;
    while (done < extent.length) {
      const uint64_t at = extent.offset + done;
      if (filled > 0 && (at != begin + filled || filled == kCopyBytes)) {
        SNOW_TRY(file.write(begin, std::span(buffer).first(filled)));
        filled = 0;
      }
      if (filled == 0) begin = at;
      const auto part = std::span(buffer).subspan(
          filled, std::min<uint64_t>(extent.length - done, kCopyBytes - filled));
      SNOW_TRY(layers[extent.layer]->read(extent.layer_offset + done, part));
      filled += part.size();
      done += part.size();
    }
  }
  if (filled > 0) SNOW_TRY(file.write(begin, std::span(buffer).first(filled)));
  return {};
}

Result<bool> Image::merge_layers(size_t limit, const std::string& path,
                                 const std::function<bool(const Layer&)>& is_private,
                                 std::vector<std::shared_ptr<Layer>>* replaced) {
  const std::lock_guard one_at_a_time(merge_mutex_);
  const auto before = state();
  if (before->layers.size() <= limit) return false;
  for (const auto& layer : before->layers) {
    if (layer->path().empty()) return false;
  }
  const std::vector<bool> chosen = choose(before->layers, before->map, limit, is_private);
  if (chosen.empty()) return false;

  SNOW_ASSIGN(SparseFile file, SparseFile::create(path));
  SNOW_TRY(before->copy_to(file, chosen));
  SNOW_ASSIGN(Fd fd, file.finish(size_, false));
  SNOW_ASSIGN(auto merged, FileLayer::adopt(std::move(fd), path, true));

  auto next = std::make_shared<State>();
  std::vector<size_t> numbers(chosen.size());
  for (size_t i = 0; i < chosen.size(); ++i) {
    numbers[i] = next->layers.size();
    if (!chosen[i]) next->layers.push_back(before->layers[i]);
    if (chosen[i] && replaced != nullptr) replaced->push_back(before->layers[i]);
  }
  std::vector<Extent> extents = before->map.extents();
  for (Extent& extent : extents) {
    if (chosen[extent.layer]) {
      extent.layer_offset = extent.offset;
      extent.layer = next->layers.size();
    } else {
      extent.layer = numbers[extent.layer];
    }
  }
  next->layers.push_back(std::move(merged));
  next->map = ExtentMap(std::move(extents));
  const std::lock_guard lock(mutex_);
  state_ = std::move(next);
  return true;
}

Result<void> Image::write_to(const std::string& path) const {
  const auto shown = state();
  SNOW_ASSIGN(SparseFile file, SparseFile::create(path));
  SNOW_TRY(shown->copy_to(file, std::vector<bool>(shown->layers.size(), true)));
  SNOW_TRY(file.finish(size_, true));
  return {};
}

}  // namespace snow
