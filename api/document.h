// The text of api/openapi.yaml, compiled in.
#pragma once

#include <string>

namespace snow {

const std::string& api_document();

}  // namespace snow
