// What a failed system call says of itself.
#pragma once

#include <cerrno>
#include <string>
#include <system_error>

namespace moe {

inline std::string ErrnoText(int error = errno) { return std::generic_category().message(error); }

}  // namespace moe
