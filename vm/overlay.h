// Makes the empty qcow2 overlay that a VM writes to, over /vm/disk.raw in its jail. qemu-img makes
// one template per disk size; a VM's overlay is a copy of it (some 200 KB, well under a
// millisecond). Thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "base/fd.h"
#include "base/result.h"

namespace snow {

class OverlayMaker {
 public:
  // Templates are kept in run_dir/templates.
  explicit OverlayMaker(const std::string& run_dir) : folder_(run_dir + "/templates") {}

  // Makes the template if this object has not yet (some 20 ms), so that make() is fast. Checks that
  // it has no feature but those that image/qcow2.h reads.
  Result<void> prepare(uint64_t virtual_size);

  // The overlay at `path` (must not exist; Code::exists), mode 0600, owned by uid:gid. Nothing is
  // left of a failure. Code::host_failed: the file system is full, for one.
  Result<void> make(uint64_t virtual_size, const std::string& path, uid_t uid, gid_t gid);

 private:
  struct Template {
    Fd fd;
    uint64_t bytes = 0;
  };
  Result<const Template*> template_of(uint64_t virtual_size);
  Result<Template> make_template(uint64_t virtual_size) const;

  const std::string folder_;
  std::mutex mutex_;
  std::map<uint64_t, Template> templates_;  // never removed from
};

}  // namespace snow
