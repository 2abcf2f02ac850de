// The kernel and initrd that a VM was started with; its clones use the same files. Those of an
// image or snapshot lie there; those that the caller of `run` named are copied, and go with the
// last VM.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "vm/context.h"

namespace snow {

class BootFiles {
 public:
  // Files that stay where they are. Empty: none.
  static std::shared_ptr<BootFiles> at(std::string kernel, std::string initrd);
  // Copies of the caller's files (an empty path: `otherwise`'s file instead).
  static Result<std::shared_ptr<BootFiles>> copy_of(Context& context, const std::string& kernel,
                                                    const std::string& initrd,
                                                    const BootFiles& otherwise);
  ~BootFiles();

  [[nodiscard]] const std::string& kernel() const { return kernel_; }
  [[nodiscard]] const std::string& initrd() const { return initrd_; }
  // The folder of our copies; empty if nothing was copied. Names the object in the record.
  [[nodiscard]] const std::string& folder() const { return folder_; }

  [[nodiscard]] nlohmann::json to_json() const;
  // Objects of the same folder must be shared: the caller keeps them by folder().
  static std::shared_ptr<BootFiles> from_json(Context& context, const nlohmann::json& json);

 private:
  BootFiles() = default;
  Context* context_ = nullptr;
  std::string kernel_;
  std::string initrd_;
  std::string folder_;
};

}  // namespace snow
