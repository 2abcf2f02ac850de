#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace snow {
namespace {

spdlog::logger& logger() {
  // Never destroyed: threads may log until the process ends.
  static auto* const instance = [] {
    auto* made = new spdlog::logger("snow", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%e %l %v");
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warn:
      return spdlog::level::warn;
    case LogLevel::error:
      break;
  }
  return spdlog::level::err;
}

}  // namespace

void set_log_level(LogLevel level) { logger().set_level(spdlog_level(level)); }
void log_line(LogLevel level, const std::string& text) { logger().log(spdlog_level(level), text); }

}  // namespace snow
