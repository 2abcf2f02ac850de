// How deep the brackets of a JSON text are nested, before it is parsed: writing or destroying a
// very deep value recurses.
#pragma once

#include <cstddef>
#include <string_view>

namespace snow {

// Brackets in strings do not count. Says nothing of whether the text is JSON.
[[nodiscard]] bool nested_within(std::string_view text, size_t limit);

}  // namespace snow
