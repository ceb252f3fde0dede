// Writes small files so that nobody ever reads half of one.
#pragma once

#include <filesystem>
#include <string_view>

namespace moe {

/// Writes `text` beside `path` and renames it. False, with nothing left beside it, when that cannot be done.
[[nodiscard]] bool ReplaceFile(const std::filesystem::path& path, std::string_view text);

}  // namespace moe
