// Calls libsnow as it is told: what the system tests of a fork from inside the guest run.
//
//   caller OP...     OP is NAME or NAME:ARGUMENT[:ARGUMENT]; one line of output for most
//
// The operations are done in order. In a clone `clone` and `checkpoint` go on after the next `else`
// (which ends the program where it is met otherwise), so that
//
//   caller ticket:2 clone join else exit:3:hello
//
// prints "ticket 2 2", "clone 0", "joined 1 exited 3 hello" and "joined 2 exited 3 hello". In a
// text argument {id} is the clone's number, {nonce} a random number that the process drew when it
// started, {info} NAME INDEX GENERATION of snow_info, {text} what `append` has put together,
// {joined} the last joined payload, {shell:COMMAND} what a command prints; see value_of for all. A
// refusal is printed as "refused OP CODE MESSAGE", and the program goes on.
#include <signal.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "guest/libsnow/call.h"
#include "guest/libsnow/snow.h"

namespace {

std::vector<snow_ticket*> tickets;
std::string checkpoint_id;
std::string nonce;
int id = 0;
std::vector<std::atomic<unsigned long>*> counters;
std::string text_so_far;  // of `append`
std::string last_joined;
std::string refused_so_far;  // "OP=CODE OP=CODE"

std::string hex(const void* bytes, size_t size) {
  std::string text;
  for (size_t i = 0; i < size; ++i) {
    char two[3];
    snprintf(two, sizeof two, "%02x", static_cast<const unsigned char*>(bytes)[i]);
    text += two;
  }
  return text;
}

std::string random_text(size_t size) {
  unsigned char bytes[64];
  if (getrandom(bytes, size, 0) != static_cast<ssize_t>(size)) abort();
  return hex(bytes, size);
}

std::string info_text() {
  snow_machine machine;
  if (snow_info(&machine) != 0) return std::string("no info: ") + snow_message();
  return std::string(machine.name) + " " + std::to_string(machine.index) + " " +
         std::to_string(machine.generation);
}

// "alive N" if all N threads move on, "stuck" if one does not within ten seconds.
std::string threads_text() {
  for (std::atomic<unsigned long>* counter : counters) {
    const unsigned long before = *counter;
    for (int i = 0; *counter == before; ++i) {
      if (i == 1000) return "stuck";
      usleep(10'000);
    }
  }
  return "alive " + std::to_string(counters.size());
}

// What a command prints, without the last line end.
std::string shell_text(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return "no shell";
  std::string text;
  for (int c; (c = fgetc(pipe)) != EOF;) text += static_cast<char>(c);
  pclose(pipe);
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

// "grows" once the number in the file is another one than at first.
std::string growth_text(const std::string& path) {
  const std::string before = shell_text("cat " + path);
  for (int i = 0; i < 1000; ++i) {
    const std::string now = shell_text("cat " + path);
    if (now != before && !now.empty()) return "grows";
    usleep(20'000);
  }
  return "stuck";
}

std::string value_of(const std::string& key, const std::string& argument) {
  if (key == "id") return std::to_string(id);
  if (key == "pid") return std::to_string(getpid());
  if (key == "nonce") return nonce;
  if (key == "info") return info_text();
  if (key == "random") return random_text(16);
  if (key == "threads") return threads_text();
  if (key == "text") return text_so_far;
  if (key == "joined") return last_joined;
  if (key == "refused") return refused_so_far;
  if (key == "shell") return shell_text(argument);
  if (key == "grows") return growth_text(argument);
  return "{" + key + "}";
}

std::string expand(const std::string& text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t open = std::min(text.find('{', at), text.size());
    out += text.substr(at, open - at);
    const size_t close = text.find('}', open);
    if (close == std::string::npos) return out + text.substr(open);
    const std::string inner = text.substr(open + 1, close - open - 1);
    const size_t colon = std::min(inner.find(':'), inner.size());
    out += value_of(inner.substr(0, colon), inner.substr(std::min(colon + 1, inner.size())));
    at = close + 1;
  }
  return out;
}

void say(const std::string& text) {
  printf("%s\n", text.c_str());
  fflush(stdout);
}

// The value, or -1 after the refusal was printed.
int checked(const char* op, int code) {
  if (code >= 0) return code;
  refused_so_far +=
      (refused_so_far.empty() ? "" : " ") + std::string(op) + "=" + snow_strerror(code);
  say(std::string("refused ") + op + " " + snow_strerror(code) + " " + snow_message());
  return -1;
}

const char* how_text(snow_how how) {
  constexpr const char* kTexts[] = {"exited", "killed", "crashed", "lost", "running"};
  return kTexts[how];
}

// A payload that its receiver can verify.
char pattern_at(size_t i) { return static_cast<char>('a' + (i * 7 + i / 4096) % 26); }

std::string pattern(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = pattern_at(i);
  return bytes;
}

bool is_pattern(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != pattern_at(i)) return false;
  }
  return true;
}

void join(snow_ticket* ticket, int timeout_ms) {
  snow_results* results = nullptr;
  const int count = checked("join", snow_join(ticket, timeout_ms, &results));
  for (int i = 0; i < count; ++i) {
    const snow_result* result = snow_results_get(results, static_cast<unsigned>(i));
    const std::string_view payload(static_cast<const char*>(result->payload), result->size);
    std::string text(payload.substr(0, 4096));
    if (payload.size() > 4096) {
      text = std::to_string(payload.size()) + (is_pattern(payload) ? " right" : " wrong");
    }
    last_joined = text;
    say("joined " + std::to_string(result->index) + " " + how_text(result->how) + " " +
        std::to_string(result->status) + (text.empty() ? "" : " " + text));
  }
  if (results != nullptr) snow_results_free(results);
}

// raw:KEY=VALUE,KEY=VALUE: a call that libsnow would not make.
void raw_call(const std::string& text) {
  snow::channel::Fields fields;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string pair = text.substr(at, end - at);
    const size_t equals = pair.find('=');
    fields[pair.substr(0, equals)] = pair.substr(equals + 1);
    at = end + 1;
  }
  snow::channel::Fields answer;
  if (checked("raw", snow::guest::ask_host(fields, answer)) < 0) return;
  std::string line = "answered";
  for (const auto& [key, value] : answer) line += " " + key + "=" + value;
  say(line);
}

void start_threads(unsigned n) {
  for (unsigned i = 0; i < n; ++i) {
    auto* counter = new std::atomic<unsigned long>(0);
    counters.push_back(counter);
    std::thread([counter] {
      while (true) {
        ++*counter;
        usleep(1000);
      }
    }).detach();
  }
}

// Forks processes for ever, as a shell script does, and writes how many into `path`.
[[noreturn]] void fork_for_ever(const std::string& path) {
  for (unsigned long made = 0;; ++made) {
    const pid_t child = fork();
    if (child == 0) _exit(7);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7) _exit(1);
    FILE* file = fopen(path.c_str(), "w");
    if (file == nullptr) _exit(1);
    fprintf(file, "%lu\n", made);
    fclose(file);
  }
}

// Draws random numbers for ever, 8 bytes a line.
[[noreturn]] void draw_for_ever(const std::string& path) {
  FILE* file = fopen(path.c_str(), "w");
  if (file == nullptr) _exit(1);
  while (true) {
    fprintf(file, "%s\n", random_text(8).c_str());
    fflush(file);
    usleep(500);
  }
}

void panic() {
  FILE* file = fopen("/proc/sysrq-trigger", "w");
  if (file != nullptr) {
    fputs("c\n", file);
    fclose(file);
  }
}

struct Op {
  std::string name, argument, rest;
};

Op parse(const std::string& text) {
  Op op;
  const size_t first = text.find(':');
  op.name = text.substr(0, first);
  if (first == std::string::npos) return op;
  const size_t second = text.find(':', first + 1);
  op.argument = text.substr(first + 1, second == std::string::npos ? second : second - first - 1);
  if (second != std::string::npos) op.rest = text.substr(second + 1);
  return op;
}

void request(const Op& op) {
  unsigned flags = 0;
  if (op.rest.find("exact") != std::string::npos) flags |= SNOW_EXACT;
  if (op.rest.find("hier") != std::string::npos) flags |= SNOW_HIERARCHICAL;
  snow_ticket* ticket = nullptr;
  const int granted = checked(
      "ticket",
      snow_request_ticket(static_cast<unsigned>(atoi(op.argument.c_str())), flags, &ticket));
  if (granted < 0) return;
  tickets.push_back(ticket);
  say("ticket " + std::to_string(granted) + " " + std::to_string(snow_ticket_processes(ticket)));
}

void leave(int status, const std::string& payload) {
  checked("exit", snow_exit(status, payload.data(), payload.size()));
}

// Whether the program goes on after the next `else`.
bool run(const Op& op) {
  snow_ticket* const ticket = tickets.empty() ? nullptr : tickets.back();
  const int number = atoi(op.argument.c_str());
  if (op.name == "ticket") {
    request(op);
  } else if (op.name == "clone") {
    const int got = checked("clone", snow_clone(ticket));
    if (got > 0) id = got;
    if (got == 0) say("clone 0");
    return got > 0;
  } else if (op.name == "checkpoint") {
    char name[SNOW_ID_BYTES];
    const int got = checked("checkpoint", snow_checkpoint(name));
    if (got > 0) id = got;
    if (got == 0) checkpoint_id = name;
    if (got == 0) say("checkpoint 0");
    return got > 0;
  } else if (op.name == "create") {
    const int made = checked("create", snow_create_clones(checkpoint_id.c_str(), ticket));
    if (made >= 0) say("created " + std::to_string(made));
  } else if (op.name == "join") {
    join(ticket, op.argument.empty() ? -1 : number);
  } else if (op.name == "kill") {
    const int killed = checked("kill", snow_kill(ticket));
    if (killed >= 0) say("killed " + std::to_string(killed));
  } else if (op.name == "exit") {
    leave(atoi(expand(op.argument).c_str()), expand(op.rest));
  } else if (op.name == "payload") {
    leave(0, pattern(static_cast<size_t>(number)));
  } else if (op.name == "say") {
    say(expand(op.argument + (op.rest.empty() ? "" : ":" + op.rest)));
  } else if (op.name == "raw") {
    raw_call(op.argument + (op.rest.empty() ? "" : ":" + op.rest));
  } else if (op.name == "id") {
    say(snow_ticket_id(ticket));
  } else if (op.name == "shell") {
    shell_text(op.argument + (op.rest.empty() ? "" : ":" + op.rest));
  } else if (op.name == "append") {
    text_so_far += op.argument;
  } else if (op.name == "nonce") {
    nonce = random_text(8);
  } else if (op.name == "sleep") {
    usleep(static_cast<unsigned>(number) * 1000);
  } else if (op.name == "await") {
    while (access(op.argument.c_str(), F_OK) != 0) usleep(20'000);
  } else if (op.name == "only") {  // this clone alone does the next operations
    if (id != number) pause();
  } else if (op.name == "threads") {
    start_threads(static_cast<unsigned>(number));
  } else if (op.name == "forks") {
    fork_for_ever(op.argument);
  } else if (op.name == "draw") {
    draw_for_ever(op.argument);
  } else if (op.name == "panic") {
    panic();
  } else if (op.name == "die") {
    raise(SIGKILL);
  } else if (op.name == "pause") {
    while (true) pause();
  } else {
    say("unknown operation " + op.name);
    exit(2);
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  nonce = random_text(8);
  for (int at = 1; at < argc; ++at) {
    const Op op = parse(argv[at]);
    if (op.name == "else") return 0;
    if (op.name == "unless") {  // the one with this number leaves the next operation out
      if (id == atoi(op.argument.c_str())) ++at;
      continue;
    }
    if (!run(op)) continue;
    while (at < argc && std::string(argv[at]) != "else") ++at;
  }
  return 0;
}
