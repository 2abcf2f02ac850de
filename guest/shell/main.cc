// The shell's commands, one static program that looks at its name:
//
//   snow-clone [-H] [--spread|--local] N -- CMD [ARG ...]
//                                          runs CMD once in each of N clones; {id} is the clone's
//   snow-parallel [-H] [--spread|--local] [-j N] FILE|-
//                                          runs the lines of a file over clones, output in order
//   snow-exit [STATUS]                     ends this clone; standard input, if piped, is the result
//   snow-info                              who this machine is, as KEY=value lines
//
// snow-clone and snow-parallel exit with the number of commands that failed (101: more than 100),
// or 125 if there were no clones.
#include <getopt.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>

#include "guest/libsnow/snow.h"
#include "guest/shell/capture.h"

namespace snow::guest {
namespace {

constexpr int kOwnFailure = 125;
constexpr unsigned kDefaultClones = 8;
// Headers of the records and, of a hierarchical clone, the other processes' share.
constexpr size_t kOutputLimit = SNOW_MAX_PAYLOAD - (1u << 20);

const char* program = "snow-guest";

int usage(const char* text) {
  fprintf(stderr, "usage: %s\n", text);
  return 2;
}

int complain(const char* what, int code) {
  fprintf(stderr, "%s: %s: %s: %s\n", program, what, snow_strerror(code), snow_message());
  return kOwnFailure;
}

struct TicketFree {
  void operator()(snow_ticket* ticket) const { snow_ticket_free(ticket); }
};

void write_whole(FILE* file, const std::string& text) { fwrite(text.data(), 1, text.size(), file); }

const char* how_text(snow_how how) {
  constexpr const char* kTexts[] = {"exited without a result", "was killed", "crashed", "was lost",
                                    "is still running"};
  return kTexts[how];
}

using Work = std::function<std::vector<Output>(unsigned id, unsigned total, size_t limit)>;

// Runs `work` in each clone; in the parent the outputs of all, and -1 or the ids that gave none.
int over_clones(unsigned n, unsigned flags, const Work& work, std::vector<Output>& outputs,
                std::vector<unsigned>& dead) {
  snow_ticket* raw = nullptr;
  const int granted = snow_request_ticket(n, flags, &raw);
  if (granted < 0) return complain("no ticket", granted);
  const std::unique_ptr<snow_ticket, TicketFree> ticket(raw);
  if (static_cast<unsigned>(granted) < n) {
    fprintf(stderr, "%s: %d clones, not %u: there is no room for more\n", program, granted, n);
  }
  const unsigned total = snow_ticket_processes(ticket.get());
  const int id = snow_clone(ticket.get());
  if (id < 0) return complain("no clones", id);
  if (id > 0) {
    const size_t limit = kOutputLimit / (total / static_cast<unsigned>(granted));
    const std::string payload = encode_outputs(work(static_cast<unsigned>(id), total, limit));
    exit(complain("exit", snow_exit(0, payload.data(), payload.size())));
  }
  snow_results* results = nullptr;
  const int count = snow_join(ticket.get(), -1, &results);
  if (count < 0) return complain("join", count);
  for (unsigned i = 0; i < static_cast<unsigned>(count); ++i) {
    const snow_result* result = snow_results_get(results, i);
    auto decoded = decode_outputs({static_cast<const char*>(result->payload), result->size});
    if (result->how != SNOW_EXITED || !decoded) {
      fprintf(stderr, "%s: clone %u %s\n", program, result->index, how_text(result->how));
      dead.push_back(result->index);
      continue;
    }
    for (Output& output : *decoded) outputs.push_back(std::move(output));
  }
  snow_results_free(results);
  return 0;
}

int print_in_order(std::vector<Output>& outputs, size_t missing) {
  std::sort(outputs.begin(), outputs.end(),
            [](const Output& a, const Output& b) { return a.number < b.number; });
  size_t bad = missing;
  for (const Output& output : outputs) {
    write_whole(stdout, output.out);
    fflush(stdout);
    write_whole(stderr, output.err);
    if (output.status != 0) ++bad;
  }
  return static_cast<int>(std::min<size_t>(bad, 101));
}

std::string with_id(std::string text, const std::string& id) {
  for (size_t at = 0; (at = text.find("{id}", at)) != std::string::npos; at += id.size()) {
    text.replace(at, 4, id);
  }
  return text;
}

unsigned number(const char* text) {
  char* end = nullptr;
  const unsigned long value = strtoul(text, &end, 10);
  return *text == '\0' || *end != '\0' || value > 1'000'000 ? 0 : static_cast<unsigned>(value);
}

// Options of both commands: flags of the ticket, and of one of them the number of clones. Ends at
// the first word that is none (optind). False: an unknown one.
bool parse_options(int argc, char** argv, const char* letters, unsigned& flags, unsigned& n) {
  static const option kLong[] = {{"spread", no_argument, nullptr, 's'},
                                 {"local", no_argument, nullptr, 'l'},
                                 {nullptr, 0, nullptr, 0}};
  for (int key; (key = getopt_long(argc, argv, letters, kLong, nullptr)) != -1;) {
    switch (key) {
      case 'H':
        flags |= SNOW_HIERARCHICAL;
        break;
      case 's':
        flags |= SNOW_SPREAD;
        break;
      case 'l':
        flags |= SNOW_LOCAL;
        break;
      case 'j':
        n = number(optarg);
        break;
      default:
        return false;
    }
  }
  return true;
}

int clone_main(int argc, char** argv) {
  constexpr const char* kUsage =
      "snow-clone [-H] [--spread|--local] N -- CMD [ARG ...]   ({id} in CMD: the clone's)";
  unsigned flags = 0;
  unsigned unused = 0;
  if (!parse_options(argc, argv, "+H", flags, unused)) return usage(kUsage);
  int at = optind;
  const unsigned n = at < argc ? number(argv[at++]) : 0;
  if (at < argc && std::string(argv[at]) == "--") ++at;
  if (n == 0 || at >= argc) return usage(kUsage);
  const std::vector<std::string> command(argv + at, argv + argc);
  const Work work = [&command](unsigned id, unsigned total, size_t limit) {
    std::vector<std::string> arguments;
    for (const std::string& text : command) arguments.push_back(with_id(text, std::to_string(id)));
    setenv("SNOW_INDEX", std::to_string(id).c_str(), 1);
    setenv("SNOW_COUNT", std::to_string(total).c_str(), 1);
    Output output = run_captured(arguments, limit);
    output.number = id;
    return std::vector<Output>{std::move(output)};
  };
  std::vector<Output> outputs;
  std::vector<unsigned> dead;
  if (const int error = over_clones(n, flags, work, outputs, dead)) return error;
  return print_in_order(outputs, dead.size());
}

bool read_lines(const std::string& path, std::vector<std::string>& lines) {
  std::ifstream file;
  if (path != "-") file.open(path);
  std::istream& in = path == "-" ? std::cin : file;
  if (!in) return false;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) lines.push_back(line);
  }
  return true;
}

int parallel_main(int argc, char** argv) {
  constexpr const char* kUsage =
      "snow-parallel [-H] [--spread|--local] [-j N] FILE|-   (default: 8 clones)";
  unsigned flags = 0;
  unsigned n = kDefaultClones;
  if (!parse_options(argc, argv, "Hj:", flags, n)) return usage(kUsage);
  if (n == 0 || optind + 1 != argc) return usage(kUsage);
  std::vector<std::string> lines;
  if (!read_lines(argv[optind], lines)) {
    fprintf(stderr, "%s: %s: cannot be read\n", program, argv[optind]);
    return kOwnFailure;
  }
  if (lines.empty()) return 0;
  const Work work = [&lines](unsigned id, unsigned total, size_t limit) {
    std::vector<Output> done;
    setenv("SNOW_INDEX", std::to_string(id).c_str(), 1);
    for (size_t line = id - 1; line < lines.size(); line += total) {
      done.push_back(run_captured({"sh", "-c", lines[line]}, limit));
      done.back().number = static_cast<uint32_t>(line);
      limit -= std::min(limit, done.back().out.size() + done.back().err.size());
    }
    return done;
  };
  std::vector<Output> outputs;
  std::vector<unsigned> dead;
  n = std::min<unsigned>(n, static_cast<unsigned>(lines.size()));
  if (const int error = over_clones(n, flags, work, outputs, dead)) return error;
  return print_in_order(outputs, lines.size() - std::min(lines.size(), outputs.size()));
}

int exit_main(int argc, char** argv) {
  if (argc > 2) return usage("snow-exit [STATUS]   (standard input, if piped, is the result)");
  std::string payload;
  if (isatty(0) == 0) {
    char buffer[65536];
    for (ssize_t got; (got = read(0, buffer, sizeof buffer)) > 0;) {
      payload.append(buffer, static_cast<size_t>(got));
    }
  }
  const int status = argc > 1 ? atoi(argv[1]) : 0;
  return complain("exit", snow_exit(status, payload.data(), payload.size()));
}

int info_main() {
  snow_machine machine;
  if (const int code = snow_info(&machine)) return complain("info", code);
  printf(
      "SNOW_ID=%s\nSNOW_NAME=%s\nSNOW_INDEX=%u\nSNOW_PARENT=%s\nSNOW_GENERATION=%u\n"
      "SNOW_TICKET=%s\n",
      machine.id, machine.name, machine.index, machine.parent, machine.generation, machine.ticket);
  return 0;
}

}  // namespace

int shell_main(int argc, char** argv) {
  std::string name = argv[0];
  name.erase(0, name.rfind('/') + 1);
  if (name == "snow-guest" && argc > 1) {  // snow-guest snow-clone ...
    ++argv;
    --argc;
    name = argv[0];
  }
  program = argv[0];
  if (name == "snow-clone") return clone_main(argc, argv);
  if (name == "snow-parallel") return parallel_main(argc, argv);
  if (name == "snow-exit") return exit_main(argc, argv);
  if (name == "snow-info") return info_main();
  return usage("snow-guest snow-clone|snow-parallel|snow-exit|snow-info ...");
}

}  // namespace snow::guest

int main(int argc, char** argv) { return snow::guest::shell_main(argc, argv); }
