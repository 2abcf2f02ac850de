#include "base/result.h"

#include <array>

namespace snow {
namespace {

struct Row {
  Code code;
  std::string_view name;
  int status;
};

constexpr std::array kRows = {
    Row{Code::internal, "internal", 500},
    Row{Code::usage, "usage", 400},
    Row{Code::not_found, "not_found", 404},
    Row{Code::exists, "exists", 409},
    Row{Code::invalid, "invalid", 400},
    Row{Code::no_room, "no_room", 507},
    Row{Code::wrong_state, "wrong_state", 409},
    Row{Code::no_agent, "no_agent", 424},
    Row{Code::guest_failed, "guest_failed", 502},
    Row{Code::timed_out, "timed_out", 504},
    Row{Code::denied, "denied", 403},
    Row{Code::unavailable, "unavailable", 503},
    Row{Code::host_failed, "host_failed", 500},
    Row{Code::corrupt, "corrupt", 422},
    Row{Code::spent, "spent", 410},
};

const Row& row_of(Code code) {
  for (const Row& row : kRows) {
    if (row.code == code) return row;
  }
  return kRows[0];
}

}  // namespace

tl::unexpected<Error> within(std::string_view what, Error error) {
  return tl::unexpected<Error>(Error{error.code, fmt::format("{}: {}", what, error.message)});
}

int exit_code(Code code) { return static_cast<int>(code); }
int http_status(Code code) { return row_of(code).status; }
std::string_view code_name(Code code) { return row_of(code).name; }

Code code_from_name(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.code;
  }
  return Code::internal;
}

}  // namespace snow
