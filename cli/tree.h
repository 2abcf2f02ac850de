// The command line's grammar, once: parsing and completion are both made from it. CLI11 is included
// by cli/tree.cc only.
#pragma once

#include <string>
#include <vector>

#include "cli/options.h"

namespace snow::cli {

// A command as completion sees it.
struct CommandInfo {
  std::string path;  // "image import"; "" is `snow` itself
  std::string description;
  std::vector<std::string> commands;   // below it
  std::vector<std::string> options;    // "-n", "--count"
  std::vector<std::string> arguments;  // "VM", "IMAGE", "SNAPSHOT", "TICKET", "HOST", "FILE", ...
};

struct Parsed {
  Command command = nullptr;  // nullptr: all is done (help, completion), with `code`
  int code = 0;
  Options options;
};

// Prints help and usage errors itself. `words` are those before "--" without the program's name.
Parsed parse_words(std::vector<std::string> words);

std::vector<CommandInfo> all_commands();

// A script for bash, zsh or fish. Code::usage for another shell.
Result<std::string> completion_script(const std::string& shell,
                                      const std::vector<CommandInfo>& commands);

}  // namespace snow::cli
