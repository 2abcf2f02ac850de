// What each host tells the others of what it keeps: "image/HOST/NAME" (imported images),
// "frozen/HOST/IMAGE" (images of frozen machines, and which hosts fetch them),
// "ticket/HOST/TICKET". The host's own record is the truth, the directory follows it within
// seconds; it is there for who asks when that host is gone. docs/formats.md has the members.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cluster/directory.h"

namespace snow {

// Values by kind ("image", "frozen", "ticket") and id.
using Kept = std::map<std::string, std::map<std::string, nlohmann::json>>;

// This host's own entries. One thread at a time.
class Registry {
 public:
  Registry(Directory& directory, std::string host)
      : directory_(directory), host_(std::move(host)) {}

  // Makes the host's entries what `kept` says (values are objects). Writes what has changed since
  // the last time; the first time it reads what an earlier daemon has left. On an error some of it
  // is done; the next call does the rest.
  Result<void> publish(const Kept& kept);

 private:
  Directory& directory_;
  const std::string host_;
  std::optional<std::map<std::string, nlohmann::json>> published_;  // by key
};

// What `host` has told. Entries that cannot be read are left out.
Result<Kept> kept_by(Directory& directory, const std::string& host);

// The host is no member any more.
Result<void> forget_kept(Directory& directory, const std::string& host);

}  // namespace snow
