#include "qemu/qmp_parser.h"

namespace snow {

namespace {

// nlohmann::json copies and prints by recursion, so deep nesting must not get into it.
bool too_deep(std::string_view line) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char byte = line[i];
    if (in_string) {
      if (byte == '\\') {
        ++i;
      } else if (byte == '"') {
        in_string = false;
      }
    } else if (byte == '"') {
      in_string = true;
    } else if (byte == '{' || byte == '[') {
      if (++depth > QmpParser::kMaxDepth) return true;
    } else if (byte == '}' || byte == ']') {
      --depth;
    }
  }
  return false;
}

Result<nlohmann::json> parse_line(std::string_view line) {
  if (too_deep(line))
    return fail(Code::corrupt, "QMP: nested deeper than {}", QmpParser::kMaxDepth);
  nlohmann::json message = nlohmann::json::parse(line, nullptr, false);
  if (!message.is_object()) return fail(Code::corrupt, "QMP: a line that is not a JSON object");
  return message;
}

}  // namespace

Result<void> QmpParser::feed(std::string_view bytes, std::vector<nlohmann::json>& messages) {
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    const std::string_view piece = bytes.substr(0, newline);
    if (line_.size() + piece.size() > kMaxLineBytes)
      return fail(Code::corrupt, "QMP: a message of more than {} MiB", kMaxLineBytes >> 20);
    line_ += piece;
    if (newline == std::string_view::npos) return {};
    bytes.remove_prefix(newline + 1);
    if (line_.find_first_not_of(" \t\r") != std::string::npos) {
      SNOW_ASSIGN(nlohmann::json message, parse_line(line_));
      messages.push_back(std::move(message));
    }
    line_.clear();
  }
  return {};
}

}  // namespace snow
