// snow: parses its command line, runs the command, prints its error.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/output.h"
#include "cli/tree.h"

namespace snow::cli {
namespace {

constexpr int kExecFailed = 125;  // exec's own errors; other codes are the guest program's

Result<int> run_command(const Parsed& parsed, bool has_tail) {
  const bool is_exec = parsed.command == &exec;
  if (has_tail && !is_exec) return fail(Code::usage, "'--': only exec takes a program");
  if (is_exec && parsed.options.command.empty()) {
    return fail(Code::usage, "exec: names no program, as in `snow exec VM -- ls -l`");
  }
  Result<int> result = parsed.command(parsed.options);
  if (std::fflush(stdout) != 0 && result) return fail_errno(Code::host_failed, "standard output");
  return result;
}

int main_of(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  // What follows "--" belongs to the guest's program and is not looked at.
  const auto dashes = std::find(words.begin(), words.end(), "--");
  const bool has_tail = dashes != words.end();
  const std::vector<std::string> tail(has_tail ? dashes + 1 : dashes, words.end());
  words.erase(dashes, words.end());

  Parsed parsed;
  Result<int> result = 0;
  try {
    parsed = parse_words(words);
    if (parsed.command == nullptr) return parsed.code;
    auto& command = parsed.options.command;
    command.insert(command.end(), tail.begin(), tail.end());
    result = run_command(parsed, has_tail);
  } catch (const std::exception& exception) {
    result = fail(Code::internal, "{}; this is a bug, or snowd's version does not fit",
                  exception.what());
  }
  if (result) return *result;
  note(result.error().message);
  return parsed.command == &exec ? kExecFailed : exit_code(result.error().code);
}

}  // namespace
}  // namespace snow::cli

int main(int argc, char** argv) {
  const int code = snow::cli::main_of(argc, argv);
  // Not exit(): a thread may still wait for standard input (cli/relay.h).
  std::fflush(nullptr);
  ::_exit(code);
}
