# What every target of the project shares: language level, warnings, floating-point rules, sanitizers.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

find_program(MOE_CCACHE ccache)
if(MOE_CCACHE)
  set(CMAKE_C_COMPILER_LAUNCHER ${MOE_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${MOE_CCACHE})
endif()

find_program(MOE_MOLD mold)
if(MOE_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

add_library(moe_options INTERFACE)
target_include_directories(moe_options INTERFACE ${CMAKE_SOURCE_DIR})
# -ffp-contract=off: GCC fuses a*b+c otherwise, differently in tails and in vector code (docs/architecture.md, invariant 1).
target_compile_options(moe_options INTERFACE -ffp-contract=off)
target_link_libraries(moe_options INTERFACE Threads::Threads)
if(MOE_SANITIZE)
  target_compile_options(moe_options INTERFACE -fsanitize=${MOE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(moe_options INTERFACE -fsanitize=${MOE_SANITIZE})
endif()

add_library(moe_warnings INTERFACE)
target_compile_options(moe_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wno-missing-field-initializers)
if(MOE_WARNINGS_AS_ERRORS)
  target_compile_options(moe_warnings INTERFACE -Werror)
endif()

# moe_library(NAME SOURCES a.cpp … DEPS public … PRIVATE_DEPS implementation only …)
function(moe_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC moe_options ${arg_DEPS} PRIVATE moe_warnings ${arg_PRIVATE_DEPS})
endfunction()

# moe_tests_LABEL builds the test programs of one label, so that a sanitizer build makes only those that run under it.
foreach(label unit concurrent contract mpi e2e)
  add_custom_target(moe_tests_${label})
endforeach()

# moe_test(NAME SOURCES a_test.cpp … DEPS … [LABELS …] [ARGS …]): one test binary, one ctest entry.
function(moe_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE moe_options moe_warnings ${arg_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE MOE_SOURCE_DIR="${CMAKE_SOURCE_DIR}" MOE_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}")
  foreach(label IN LISTS arg_LABELS)
    if(NOT TARGET moe_tests_${label})
      message(FATAL_ERROR "${name}: label \"${label}\" is unknown (unit, concurrent, contract, mpi, e2e)")
    endif()
    add_dependencies(moe_tests_${label} ${name})
  endforeach()
endfunction()

# moe_build_info: build_info.h with the version and the commit, brought up to date by every build.
add_custom_target(moe_build_info_header
  COMMAND ${CMAKE_COMMAND} -D SOURCE_DIR=${CMAKE_SOURCE_DIR} -D VERSION=${PROJECT_VERSION}
          -D OUTPUT=${CMAKE_BINARY_DIR}/generated/build_info.h -P ${CMAKE_SOURCE_DIR}/cmake/build_info.cmake
  BYPRODUCTS ${CMAKE_BINARY_DIR}/generated/build_info.h VERBATIM)
add_library(moe_build_info INTERFACE)
target_include_directories(moe_build_info INTERFACE ${CMAKE_BINARY_DIR}/generated)
add_dependencies(moe_build_info moe_build_info_header)
