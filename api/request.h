// Request bodies as what vm/ takes: bounded, every field checked, unknown ones refused by name.
// Errors: Code::usage (not JSON, wrong type, unknown or missing field) or invalid (a value out of
// range). An empty body is an empty object. Free of I/O; fuzzed by request_fuzz.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "vm/host.h"

namespace snow {

inline constexpr size_t kMaxBodyBytes = size_t{1} << 20;
inline constexpr unsigned kStopTimeoutMs = 10'000;  // when a stop names none
inline constexpr unsigned kTokenSeconds = 3600;     // when a token is to have none

struct ReserveRequest {
  unsigned count = 1;
  unsigned minimum = 0;
  Placing placing;
};

Result<ImportRequest> parse_import(std::string_view body);
Result<RunRequest> parse_run(std::string_view body);
// With a ticket and no count, `count` is 0: all that the ticket granted.
Result<ForkRequest> parse_fork(std::string_view body, const std::string& vm);
Result<ReserveRequest> parse_reserve(std::string_view body);
Result<ExecRequest> parse_exec(std::string_view body);
Result<ClusterRequest> parse_cluster(std::string_view body);
Result<JoinRequest> parse_join_cluster(std::string_view body);
Result<unsigned> parse_token(std::string_view body);  // seconds
Result<bool> parse_drain(std::string_view body);
Result<int> parse_detach(std::string_view body);            // timeout_ms, -1: for ever
Result<unsigned> parse_stop(std::string_view body);         // timeout_ms
Result<int64_t> parse_join(std::string_view body);          // timeout_ms, -1: for ever
Result<std::string> parse_snapshot(std::string_view body);  // name
Result<void> parse_nothing(std::string_view body);

// A client's control frame: {"resize": [rows, columns]} or {"signal": number}.
struct Control {
  unsigned rows = 0, columns = 0;  // both 0: no resize
  int signal = 0;                  // 0: none
};
Result<Control> parse_control(std::string_view frame);

}  // namespace snow
