# Writes OUTPUT with the version and the commit of the sources in SOURCE_DIR; touches it only when they have changed, so
# that a build without a new commit compiles nothing.
cmake_policy(VERSION 3.25)
execute_process(COMMAND git -C ${SOURCE_DIR} rev-parse --short=12 HEAD OUTPUT_VARIABLE commit RESULT_VARIABLE result
                OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT result EQUAL 0)
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUTPUT} @ONLY CONTENT "#pragma once

namespace moe {

inline constexpr const char* kBuildVersion = \"@VERSION@\";
inline constexpr const char* kBuildCommit = \"@commit@\";

}  // namespace moe
")
