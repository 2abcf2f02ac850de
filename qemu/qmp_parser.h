// The receiving half of QMP without I/O: bytes in, messages out. What comes from a QEMU that a
// guest has taken over is hostile: line length and nesting are bounded. Not thread-safe.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace snow {

class QmpParser {
 public:
  static constexpr size_t kMaxLineBytes = size_t{16} << 20;
  static constexpr int kMaxDepth = 64;

  // Appends each message that `bytes` completes to `messages`: one JSON object per line.
  // Code::corrupt for anything else; the parser is not to be used after that.
  Result<void> feed(std::string_view bytes, std::vector<nlohmann::json>& messages);

 private:
  std::string line_;  // what came after the last newline
};

}  // namespace snow
