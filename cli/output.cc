#include "cli/output.h"

#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "api/text.h"

namespace snow::cli {
namespace {

std::string distance(int64_t seconds) {
  struct Unit {
    int64_t seconds;
    const char* letter;
  };
  const int64_t length = seconds < 0 ? -seconds : seconds;
  std::string text = fmt::format("{}s", length);
  for (const Unit unit : {Unit{60, "m"}, Unit{3600, "h"}, Unit{86400, "d"}}) {
    if (length >= 2 * unit.seconds) text = fmt::format("{}{}", length / unit.seconds, unit.letter);
  }
  return seconds < 0 ? "in " + text : text + " ago";
}

// Characters, not bytes, so that columns stand below each other.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; }));
}

}  // namespace

std::string printable(std::string_view text) {
  std::string clean;
  for (const char c : text) {
    clean += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  return clean;
}

int64_t parse_time(const std::string& text) {
  tm parts{};
  const char* rest = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  return rest == nullptr ? -1 : ::timegm(&parts);
}

std::string cell(const nlohmann::json& object, const std::string& field) {
  const nlohmann::json* value = &object;
  for (size_t from = 0; from <= field.size();) {
    const size_t dot = std::min(field.find('.', from), field.size());
    const std::string key = field.substr(from, dot - from);
    if (!value->is_object() || !value->contains(key)) return "-";
    value = &(*value)[key];
    from = dot + 1;
  }
  if (value->is_null()) return "-";
  if (value->is_boolean()) return value->get<bool>() ? "yes" : "no";
  if (value->is_number_integer() &&
      (field == "memory" || field == "stored" || field == "disk_size")) {
    return format_size(value->get<uint64_t>());
  }
  if (value->is_number_float()) return fmt::format("{:.2f}", value->get<double>());
  if (!value->is_string()) return value->dump();
  const auto& text = value->get_ref<const std::string&>();
  if (field == "created" || field == "expires" || field == "since") {
    const int64_t then = parse_time(text);
    if (then >= 0) return distance(::time(nullptr) - then);
  }
  return text.empty() ? "-" : printable(text);
}

void print_table(const std::vector<std::string>& headings,
                 const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const std::string& heading : headings) widths.push_back(heading.size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  }
  const auto print_row = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - width_of(row[i]) + 2, ' ');
    }
    fmt::print("{}\n", line);
  };
  print_row(headings);
  for (const auto& row : rows) print_row(row);
}

void print_list(const Options& options, const nlohmann::json& list,
                const std::vector<Column>& columns, const char* id) {
  if (options.format == Format::json) {
    fmt::print("{}\n", list.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return;
  }
  if (options.format == Format::name) {
    for (const nlohmann::json& object : list) fmt::print("{}\n", cell(object, id));
    return;
  }
  std::vector<std::string> headings;
  for (const Column& column : columns) headings.emplace_back(column.heading);
  std::vector<std::vector<std::string>> rows;
  for (const nlohmann::json& object : list) {
    auto& row = rows.emplace_back();
    for (const Column& column : columns) row.push_back(cell(object, column.field));
  }
  print_table(headings, rows);
}

void print_object(const Options& options, const nlohmann::json& object, const char* id) {
  if (options.format == Format::name) {
    fmt::print("{}\n", cell(object, id));
  } else {
    fmt::print("{}\n", object.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  }
}

std::string state_of(const nlohmann::json& vm) {
  const std::string state = cell(vm, "state"), source = cell(vm, "waiting_for");
  return source == "-" ? state : fmt::format("{} (waits for {})", state, source);
}

void print_vms(const Options& options, const nlohmann::json& vms) {
  std::vector<Column> columns = {
      {"ID", "id"},       {"NAME", "name"},      {"STATE", "state"},
      {"IMAGE", "image"}, {"PARENT", "parent"},  {"GEN", "generation"},
      {"CPUS", "cpus"},   {"MEMORY", "memory"},  {"ACCEL", "accelerator"},
      {"AGENT", "agent"}, {"CREATED", "created"}};
  if (options.format != Format::table) return print_list(options, vms, columns);
  nlohmann::json shown = vms;
  bool in_cluster = false;
  for (nlohmann::json& vm : shown) {
    in_cluster = in_cluster || cell(vm, "host") != "-";
    vm["state"] = state_of(vm);
  }
  if (in_cluster) columns.insert(columns.begin() + 3, {"HOST", "host"});
  print_list(options, shown, columns);
}

void note(const std::string& text) { fmt::print(stderr, "snow: {}\n", printable(text)); }

Progress::Progress(std::string text) {
  if (::isatty(STDERR_FILENO) == 0) return;
  thread_ = std::thread([this, text = std::move(text)] { run(text); });
}

void Progress::run(const std::string& text) {
  std::unique_lock lock(mutex_);
  int seconds = 0;
  while (!ended_.wait_for(lock, std::chrono::seconds(1), [&] { return over_; })) {
    fmt::print(stderr, "\r\033[K{} ... {} s", text, ++seconds);
    std::fflush(stderr);
  }
  if (seconds > 0) {
    fmt::print(stderr, "\r\033[K");
    std::fflush(stderr);
  }
}

Progress::~Progress() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  ended_.notify_all();
  thread_.join();
}

}  // namespace snow::cli
