// Names that people give to VMs, images and snapshots.
#pragma once

#include <string_view>

#include "base/result.h"

namespace snow {

// 1 to 63 letters, digits and _.-, beginning with a letter or digit: safe as a file name and, but
// for
// '_' and '.', as a host name. Otherwise Code::invalid, with `what` the name is of in the message.
Result<void> check_name(std::string_view what, std::string_view name);

}  // namespace snow
