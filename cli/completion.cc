// Completion scripts. Names of VMs, images, snapshots, tickets and hosts are asked of the daemon
// when they are needed.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/tree.h"

namespace snow::cli {
namespace {

// The command that lists what an argument can be; "" for none (files complete themselves).
std::string lister_of(const CommandInfo& command) {
  if (command.arguments.empty()) return "";
  const std::string& argument = command.arguments[0];
  if (argument == "VM") return "snow ps -a -o name";
  if (argument == "IMAGE") return "snow image ls -o name";
  if (argument == "SNAPSHOT") return "snow snapshot ls -o name";
  if (argument == "TICKET") return "snow ticket ls -o name";
  if (argument == "HOST") return "snow host ls -o name";
  if (argument == "SHELL") return "echo bash zsh fish";
  return "";
}

constexpr const char* kBash = R"sh(# Completion of snow for bash: `source <(snow completion bash)`.
_snow() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" path="" words="" options="" lister="" word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    [ "$word" = -- ] && return
    case "$path $word" in
      {paths}) path="$path $word" ;;
    esac
  done
  case "$path" in
{cases}  esac
  case "$current" in
    -*) words="$options" ;;
    *) [ -n "$lister" ] && words="$words $($lister 2>/dev/null)" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _snow snow
)sh";

std::string bash_script(const std::vector<CommandInfo>& commands) {
  std::vector<std::string> paths;
  std::string cases;
  for (const CommandInfo& command : commands) {
    const std::string path = command.path.empty() ? "" : " " + command.path;
    if (!path.empty()) paths.push_back(fmt::format("\"{}\"", path));
    cases += fmt::format("    \"{}\") words=\"{}\"; options=\"{}\"; lister=\"{}\" ;;\n", path,
                         fmt::join(command.commands, " "), fmt::join(command.options, " "),
                         lister_of(command));
  }
  return fmt::format(kBash, fmt::arg("paths", fmt::to_string(fmt::join(paths, "|"))),
                     fmt::arg("cases", cases));
}

std::string fish_script(const std::vector<CommandInfo>& commands) {
  std::string script = "# Completion of snow for fish: `snow completion fish | source`.\n";
  for (const CommandInfo& command : commands) {
    // Condition: every word of the path was seen, and none of the commands below it.
    std::string condition;
    for (size_t from = 0; from < command.path.size();) {
      const size_t end = std::min(command.path.find(' ', from), command.path.size());
      condition += fmt::format("__fish_seen_subcommand_from {}; and ",
                               command.path.substr(from, end - from));
      from = end + 1;
    }
    if (command.commands.empty()) {
      condition += "true";
    } else {
      condition +=
          fmt::format("not __fish_seen_subcommand_from {}", fmt::join(command.commands, " "));
    }
    const std::string start = fmt::format("complete -c snow -n '{}'", condition);
    for (const std::string& name : command.commands) {
      script += fmt::format("{} -f -a {}\n", start, name);
    }
    for (const std::string& option : command.options) {
      script += option.starts_with("--") ? fmt::format("{} -l {}\n", start, option.substr(2))
                                         : fmt::format("{} -s {}\n", start, option.substr(1));
    }
    if (const std::string lister = lister_of(command); !lister.empty()) {
      script += fmt::format("{} -f -a '({} 2>/dev/null)'\n", start, lister);
    }
  }
  return script;
}

}  // namespace

Result<std::string> completion_script(const std::string& shell,
                                      const std::vector<CommandInfo>& commands) {
  if (shell == "bash") return bash_script(commands);
  if (shell == "zsh") {
    return "#compdef snow\nautoload -U +X bashcompinit && bashcompinit\n" + bash_script(commands);
  }
  if (shell == "fish") return fish_script(commands);
  return fail(Code::usage, "shell '{}': completion is for bash, zsh and fish", shell);
}

}  // namespace snow::cli
