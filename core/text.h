// Builds short messages from parts without printf formats.
#pragma once

#include <sstream>
#include <string>

namespace moe {

/// Concatenates its arguments as operator<< prints them. For messages, not for hot paths.
template <typename... Parts>
std::string Cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

}  // namespace moe
