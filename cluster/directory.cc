#include "cluster/directory.h"

#include <set>

#include "base/nesting.h"
#include "cluster/json_text.h"

namespace snow {
namespace {

bool is_key_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '.' || c == '-' || c == '/';
}

Result<void> check_characters(std::string_view what, std::string_view text) {
  if (text.size() > Directory::kMaxKeyBytes) {
    return fail(Code::invalid, "directory: {} '{}...' has {} bytes; at most {} are allowed", what,
                text.substr(0, 40), text.size(), Directory::kMaxKeyBytes);
  }
  for (const char c : text) {
    if (!is_key_character(c)) {
      return fail(Code::invalid,
                  "directory: {} has the byte 0x{:02x}; only letters, digits and _.-/ are allowed",
                  what, static_cast<unsigned char>(c));
    }
  }
  if (text.substr(0, 1) == "/" || text.find("//") != std::string_view::npos) {
    return fail(Code::invalid, "directory: {} '{}' has an empty part", what, text);
  }
  return {};
}

}  // namespace

Result<void> check_key(std::string_view key) {
  if (key.empty()) return fail(Code::invalid, "directory: an empty key");
  SNOW_TRY(check_characters("key", key));
  if (key.back() == '/') return fail(Code::invalid, "directory: key '{}' ends with '/'", key);
  return {};
}

Result<void> check_prefix(std::string_view prefix) { return check_characters("prefix", prefix); }

Result<void> check_lease_seconds(unsigned seconds) {
  if (seconds >= 1 && seconds <= Directory::kMaxLeaseSeconds) return {};
  return fail(Code::invalid, "directory: a lease of {} seconds; 1 to {} are allowed", seconds,
              Directory::kMaxLeaseSeconds);
}

Result<std::vector<std::string>> check_transaction(const Transaction& transaction) {
  const size_t changes = transaction.puts.size() + transaction.removes.size();
  if (changes > Directory::kMaxOperations ||
      transaction.compares.size() > Directory::kMaxOperations) {
    return fail(Code::invalid,
                "directory: a transaction of {} compares and {} changes; at most {} of each are "
                "possible: split it",
                transaction.compares.size(), changes, Directory::kMaxOperations);
  }
  for (const auto& compare : transaction.compares) SNOW_TRY(check_key(compare.key));
  std::set<std::string_view> changed;
  size_t bytes = 0;
  std::vector<std::string> texts;
  for (const auto& put : transaction.puts) {
    SNOW_TRY(check_key(put.key));
    if (!changed.insert(put.key).second) {
      return fail(Code::invalid, "directory: a transaction changes '{}' twice", put.key);
    }
    // Bytes that are not UTF-8 must not throw here.
    texts.push_back(put.value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    // What is written must be readable again, so its shape is held to the same limits.
    if (texts.back().size() > Directory::kMaxValueBytes ||
        !nested_within(texts.back(), kMaxJsonDepth)) {
      return fail(Code::invalid,
                  "directory: the value of '{}' has {} bytes; at most {}, nested {} deep, are "
                  "allowed",
                  put.key, texts.back().size(), Directory::kMaxValueBytes, kMaxJsonDepth);
    }
    bytes += put.key.size() + texts.back().size();
  }
  for (const auto& key : transaction.removes) {
    SNOW_TRY(check_key(key));
    if (!changed.insert(key).second) {
      return fail(Code::invalid, "directory: a transaction changes '{}' twice", key);
    }
  }
  if (bytes > Directory::kMaxTransactionBytes) {
    return fail(Code::invalid,
                "directory: a transaction of {} bytes; at most {} are possible: split it", bytes,
                Directory::kMaxTransactionBytes);
  }
  return texts;
}

std::string printable_key(std::string_view key) {
  std::string text(key.substr(0, Directory::kMaxKeyBytes));
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text;
}

Result<nlohmann::json> parse_stored_value(std::string_view key, std::string_view text) {
  if (text.size() > Directory::kMaxValueBytes) {
    return fail(Code::corrupt,
                "directory key '{}': {} bytes, more than Thundersnow ever writes ({}); whoever put "
                "it there should take it away",
                printable_key(key), text.size(), Directory::kMaxValueBytes);
  }
  auto value = parse_json(text);
  if (!value) {
    return fail(Code::corrupt, "directory key '{}': {}; whoever put it there should take it away",
                printable_key(key), value.error().message);
  }
  return value;
}

std::string end_of_prefix(std::string prefix) {
  while (!prefix.empty()) {
    const auto last = static_cast<unsigned char>(prefix.back());
    if (last < 0xff) {
      prefix.back() = static_cast<char>(last + 1);
      break;
    }
    prefix.pop_back();
  }
  return prefix;
}

}  // namespace snow
