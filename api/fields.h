// Reads the fields of one JSON object that came from outside: each known field once, by type and
// bound, and then `done()`, which refuses what nobody asked for by its name. The first error stays.
// Not thread-safe; belongs to one parse.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace snow {

class FieldReader {
 public:
  // `object` must outlive the reader. Anything but an object is an error of done().
  explicit FieldReader(const nlohmann::json& object);

  // Each leaves `into` as it is when the field is missing. Strings have no NUL.
  void text(const char* field, std::string& into, size_t most_bytes = 4096);
  void text(const char* field, std::optional<std::string>& into, size_t most_bytes = 4096);
  void name(const char* field, std::string& into);  // check_name()
  void path(const char* field, std::string& into);  // absolute
  void choice(const char* field, std::string& into, const std::vector<std::string>& choices);
  void flag(const char* field, bool& into);
  void number(const char* field, int64_t& into, int64_t least, int64_t most);
  void number(const char* field, unsigned& into, int64_t least, int64_t most);
  void size(const char* field, uint64_t& into);  // bytes, below 2^62
  void words(const char* field, std::vector<std::string>& into, size_t most);
  void map(const char* field, std::map<std::string, std::string>& into);  // at most 1024

  void ignore(const char* field) { known_.emplace(field); }  // whatever it is
  void need(const char* field);                              // refuses its absence
  [[nodiscard]] bool has(const char* field) const;
  [[nodiscard]] Result<void> done();

 private:
  const nlohmann::json* find(const char* field);
  void refuse(Code code, std::string message);
  bool check_text(const char* field, const nlohmann::json& value, size_t most_bytes);

  const nlohmann::json& object_;
  std::set<std::string, std::less<>> known_;
  std::optional<Error> error_;
};

}  // namespace snow
