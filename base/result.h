// The one error type of Thundersnow: Result<T> with a closed set of codes. The same set is the
// CLI's exit code, the API's "code" string and the HTTP status (base/result.cc has the table;
// docs/errors.md documents it).
//
// A message names the thing, the cause and the next action: "image 'web': no such image; `snow
// image ls` lists them". Errors are logged once, where they are handled, never where they are made.
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace snow {

enum class Code {
  internal = 1,      // a bug of ours, or a host fault we did not expect
  usage = 2,         // the command line or request is malformed
  not_found = 3,     // no such VM, image, snapshot, ticket, file
  exists = 4,        // the name is taken
  invalid = 5,       // a value is out of range or of the wrong kind
  no_room = 6,       // a limit of the host would be exceeded; nothing was changed
  wrong_state = 7,   // the thing is there but not in a state that allows this (paused, stopped...)
  no_agent = 8,      // the guest has no agent, or it does not answer
  guest_failed = 9,  // the guest crashed, or refused the request
  timed_out = 10,    // it took longer than asked for
  denied = 11,       // the caller has no right to it
  unavailable = 12,  // the daemon (or keeper) cannot be reached
  host_failed = 13,  // the host failed us: disk full, QEMU did not start, mount refused
  corrupt = 14,      // a file or message is not what it claims to be
  spent = 15,        // a ticket that was used already
};

struct Error {
  Code code = Code::internal;
  std::string message;
};

template <class T = void>
using Result = tl::expected<T, Error>;

// `return fail(Code::not_found, "VM '{}': no such VM; ...", name);`
template <class... Args>
[[nodiscard]] tl::unexpected<Error> fail(Code code, fmt::format_string<Args...> format,
                                         Args&&... args) {
  return tl::unexpected<Error>(Error{code, fmt::format(format, std::forward<Args>(args)...)});
}

// Like fail, with ": <strerror(errno)>" appended. errno is read first.
template <class... Args>
[[nodiscard]] tl::unexpected<Error> fail_errno(Code code, fmt::format_string<Args...> format,
                                               Args&&... args) {
  const int error = errno;
  std::string text = fmt::format(format, std::forward<Args>(args)...);
  return tl::unexpected<Error>(Error{code, text + ": " + std::string(strerror(error))});
}

// The error again, with what was being done in front: "fork of 'web': " + message.
[[nodiscard]] tl::unexpected<Error> within(std::string_view what, Error error);

int exit_code(Code code);                    // the CLI's exit code
int http_status(Code code);                  // the API's status
std::string_view code_name(Code code);       // "not_found": the API's "code" string
Code code_from_name(std::string_view name);  // unknown names are Code::internal

// SNOW_TRY(expr): returns the error of a Result, or goes on.
// SNOW_ASSIGN(auto x, expr): the same, with the value moved into x.
#define SNOW_TRY(expression)                                                \
  do {                                                                      \
    if (auto snow_result = (expression); !snow_result)                      \
      return tl::unexpected<::snow::Error>(std::move(snow_result).error()); \
  } while (false)
#define SNOW_CONCAT2(a, b) a##b
#define SNOW_CONCAT(a, b) SNOW_CONCAT2(a, b)
#define SNOW_ASSIGN(declaration, expression) \
  SNOW_ASSIGN_AS(SNOW_CONCAT(snow_result_, __LINE__), declaration, expression)
#define SNOW_ASSIGN_AS(name, declaration, expression)                       \
  auto name = (expression);                                                 \
  if (!name) return tl::unexpected<::snow::Error>(std::move(name).error()); \
  declaration = *std::move(name)

}  // namespace snow
