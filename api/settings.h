// The daemon's settings: defaults, then the file, then `--set`. docs/settings.md documents each
// key.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "vm/host.h"

namespace snow {

// Sets one key from text ("64G", "true"). Code::usage names an unknown key and lists the known
// ones; Code::invalid a value that does not fit.
Result<void> set_setting(Settings& settings, std::string_view key, std::string_view value);

// A TOML file of top-level `key = value` lines. A missing file is Code::not_found; every other
// error is Code::usage or invalid and names the file and line.
Result<void> read_settings(Settings& settings, const std::string& path);

std::vector<std::string> setting_keys();

}  // namespace snow
