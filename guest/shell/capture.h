// Runs a command and keeps what it prints. Used in a clone, by one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace snow::guest {

// What one command did, as it travels from a clone to the parent:
// u32 number | u32 status | u32 out size | u32 err size | out | err   (LE)
struct Output {
  uint32_t number = 0;  // the line's, for snow-parallel
  int status = 0;       // exit code; 128 + n for signal n; 126, 127 as in a shell
  std::string out, err;
};

// At most `limit` bytes of output are kept; what is above is dropped, and the end of `err` says so.
Output run_captured(const std::vector<std::string>& arguments, size_t limit);

std::string encode_outputs(const std::vector<Output>& outputs);
std::optional<std::vector<Output>> decode_outputs(std::string_view bytes);

}  // namespace snow::guest
