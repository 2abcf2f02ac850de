// What goes to standard output (tables, JSON, names) and the progress line on standard error.
#pragma once

#include <condition_variable>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "cli/options.h"

namespace snow::cli {

// A column: its heading and the field shown. Fields may be nested ("exit.how"). A missing or null
// one is "-"; "memory", "stored" and "disk_size" are shown as sizes, "created", "expires" and
// "since" as distances from now.
struct Column {
  const char* heading;
  const char* field;
};

// A list in the format that was asked for; `id` is the field that -o name prints.
void print_list(const Options& options, const nlohmann::json& list,
                const std::vector<Column>& columns, const char* id = "name");
// One object: JSON (table: the same), or its name.
void print_object(const Options& options, const nlohmann::json& object, const char* id = "name");

void print_table(const std::vector<std::string>& headings,
                 const std::vector<std::vector<std::string>>& rows);
std::string cell(const nlohmann::json& object, const std::string& field);
std::string state_of(const nlohmann::json& vm);  // "running (waits for b)"

// Without control characters: what a guest chose must not reach the terminal as it is.
std::string printable(std::string_view text);

// Seconds since 1970 of "2026-01-01T00:00:00[.123]Z"; -1 if it is not that.
int64_t parse_time(const std::string& text);

// VMs: in a cluster with the host of each, and in STATE with the host that it waits for.
void print_vms(const Options& options, const nlohmann::json& vms);

void note(const std::string& text);  // "snow: TEXT" on standard error

// While it lives and standard error is a terminal, shows "TEXT ... 3 s" there after a second; the
// line is gone when the object is.
class Progress {
 public:
  explicit Progress(std::string text);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

 private:
  void run(const std::string& text);

  std::mutex mutex_;
  std::condition_variable ended_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace snow::cli
