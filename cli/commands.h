// The commands of `snow`, one function each, grouped as the files that hold them.
#pragma once

#include "cli/options.h"

namespace snow::cli {

// vms.cc
Result<int> run(const Options& options);
Result<int> ps(const Options& options);
Result<int> inspect(const Options& options);
Result<int> pause(const Options& options);
Result<int> resume(const Options& options);
Result<int> stop(const Options& options);
Result<int> kill(const Options& options);
Result<int> rm(const Options& options);
Result<int> vm_detach(const Options& options);
// family.cc
Result<int> tree(const Options& options);
Result<int> fork(const Options& options);
Result<int> reserve(const Options& options);
Result<int> ticket_ls(const Options& options);
Result<int> ticket_rm(const Options& options);
Result<int> ticket_kill(const Options& options);
Result<int> join(const Options& options);
// images.cc
Result<int> image_import(const Options& options);
Result<int> image_ls(const Options& options);
Result<int> image_show(const Options& options);
Result<int> image_rm(const Options& options);
Result<int> snapshot_create(const Options& options);
Result<int> snapshot_ls(const Options& options);
Result<int> snapshot_show(const Options& options);
Result<int> snapshot_rm(const Options& options);
// exec.cc
Result<int> exec(const Options& options);
Result<int> console(const Options& options);
Result<int> logs(const Options& options);
// copy.cc
Result<int> copy(const Options& options);
// host.cc
Result<int> info(const Options& options);
Result<int> events(const Options& options);
Result<int> version(const Options& options);
// cluster.cc
Result<int> cluster_init(const Options& options);
Result<int> cluster_token(const Options& options);
Result<int> cluster_join(const Options& options);
Result<int> host_ls(const Options& options);
Result<int> host_show(const Options& options);
Result<int> host_drain(const Options& options);
Result<int> host_rm(const Options& options);
// doctor.cc
Result<int> doctor(const Options& options);

}  // namespace snow::cli
