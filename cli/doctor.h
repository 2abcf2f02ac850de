// What `snow doctor` finds out: one Finding for each question.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cli/client.h"

namespace snow::cli {

// fail: VMs or forks cannot work; warn: they do, with a consequence that is named.
enum class Verdict { pass, warn, fail };
struct Finding {
  std::string what;
  Verdict verdict = Verdict::pass;
  std::string text;  // with the mend, unless pass
};

// The cluster that the daemon is a member of: its lease, etcd, clocks, who can be reached from
// here. Empty if it is in none. `info` is the daemon's. Asks etcd and every host: seconds if they
// do not answer.
std::vector<Finding> check_cluster(const Client& client, const nlohmann::json& info);

}  // namespace snow::cli
