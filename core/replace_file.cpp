#include "core/replace_file.h"

#include <unistd.h>

#include <fstream>
#include <system_error>

#include "core/text.h"

namespace moe {

bool ReplaceFile(const std::filesystem::path& path, std::string_view text) {
  std::filesystem::path beside = path;
  beside += Cat(".", getpid());
  std::ofstream file(beside, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(beside, path, error);
  if (file && !error) return true;
  std::error_code ignored;
  std::filesystem::remove(beside, ignored);
  return false;
}

}  // namespace moe
