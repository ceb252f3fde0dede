// Broken invariants stop the process. Never use on anything that a user can influence.
#pragma once

#include <string_view>

namespace moe {

[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, std::string_view detail);

}  // namespace moe

/// MOE_CHECK(condition) or MOE_CHECK(condition, message).
#define MOE_CHECK(condition, ...)                                                        \
  do {                                                                                   \
    if (!(condition)) [[unlikely]]                                                       \
      ::moe::CheckFailed(__FILE__, __LINE__, #condition, std::string_view{__VA_ARGS__}); \
  } while (false)
