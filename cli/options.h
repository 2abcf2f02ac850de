// What the command line said. One struct for all commands: each uses the fields that its options
// set (cli/tree.cc). Commands print data on standard output and everything else on standard error.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/result.h"

namespace snow::cli {

enum class Format { table, json, name };

struct Options {
  std::string socket = "/run/snow/api.sock";
  Format format = Format::table;
  std::string program;  // the path of this program, for completion

  std::vector<std::string> names;  // VMs, images, snapshots, tickets or hosts
  std::string vm, name, image, from, ticket, file, kernel, initrd, memory, user, directory;
  std::string append;
  bool has_append = false;
  std::string accelerator, network, machine;
  std::vector<std::string> environment, parameters;  // KEY=VALUE
  unsigned count = 1, minimum = 0, cpus = 0;
  bool has_count = false;
  std::string place;               // local, pack or spread; empty: snowd's choice
  std::vector<std::string> hosts;  // only on these
  std::string address, host_name, token, token_file;
  std::vector<std::string> etcd;
  unsigned ttl_seconds = 3600;
  bool plain = false, undo = false;
  double timeout_seconds = -1;
  unsigned wait_seconds = 60;
  uint64_t after = 0;
  bool all = false, force = false, detach = false, follow = false, interactive = false;
  bool terminal = false, verbose = false, recursive = false, no_wait = false;
  std::string source, destination;
  std::string shell;
  std::vector<std::string> command;  // what follows "--"
};

// A command: its exit code, or an error (printed as "snow: ...", exit code by its code).
using Command = Result<int> (*)(const Options&);

// "KEY=VALUE" words as a map. Code::usage names `option`.
Result<std::map<std::string, std::string>> pairs_of(const std::string& option,
                                                    const std::vector<std::string>& words);

}  // namespace snow::cli
