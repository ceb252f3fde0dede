# What every target of the project shares: language level, warnings, floating-point rules, sanitizers.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

find_program(MOE_CCACHE ccache)
if(MOE_CCACHE)
  # Paths below the source folder are hashed relative to it, so that all clones on a machine share what one has compiled.
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${MOE_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
endif()

find_program(MOE_MOLD mold)
if(MOE_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

add_library(moe_options INTERFACE)
target_include_directories(moe_options INTERFACE ${CMAKE_SOURCE_DIR})
# -ffp-contract=off: GCC fuses a*b+c otherwise, differently in tails and in vector code (docs/architecture.md, invariant 1).
# nvcc has a switch of its own for device code and hands the host's part to GCC.
target_compile_options(moe_options INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-ffp-contract=off>
  $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-ffp-contract=off>)
target_link_libraries(moe_options INTERFACE Threads::Threads)
if(MOE_SANITIZE)
  # What is left out of "undefined" is a tenth of the compiler's time: "null" shows as a fault under the address sanitizer
  # anyway; "object-size" and "vptr" are given up. Code of tests goes without "undefined" at all: a sixth of its own.
  set(no_test $<NOT:$<BOOL:$<TARGET_PROPERTY:MOE_TEST>>>)
  foreach(sanitizer IN LISTS MOE_SANITIZE)
    if(sanitizer STREQUAL "undefined")
      target_compile_options(moe_options INTERFACE
        "$<$<AND:$<COMPILE_LANGUAGE:C,CXX>,${no_test}>:-fsanitize=undefined;-fno-sanitize=null,object-size,vptr>")
    else()
      target_compile_options(moe_options INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${sanitizer}>)
    endif()
    target_link_options(moe_options INTERFACE -fsanitize=${sanitizer})
  endforeach()
  target_compile_options(moe_options INTERFACE
    $<$<COMPILE_LANGUAGE:C,CXX>:-fno-omit-frame-pointer> $<$<COMPILE_LANGUAGE:C,CXX>:-fno-sanitize-recover=all>)
endif()

add_library(moe_warnings INTERFACE)
set(moe_cxx_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wno-missing-field-initializers)
set(moe_cuda_warnings --Wext-lambda-captures-this --Wdefault-stream-launch -Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers)
# It takes the files that make one object for headers.
list(APPEND moe_cxx_warnings $<$<BOOL:$<TARGET_PROPERTY:UNITY_BUILD>>:-Wno-subobject-linkage>)
if(MOE_WARNINGS_AS_ERRORS)
  list(APPEND moe_cxx_warnings -Werror)
  list(APPEND moe_cuda_warnings --Werror=all-warnings -Xcompiler=-Werror)
endif()
# Quoted: a list inside a generator expression is one argument.
target_compile_options(moe_warnings INTERFACE
  "$<$<COMPILE_LANGUAGE:C,CXX>:${moe_cxx_warnings}>" "$<$<COMPILE_LANGUAGE:CUDA>:${moe_cuda_warnings}>")

# Several files make one object where CMAKE_UNITY_BUILD is on (scripts/lib.sh). Those whose unnamed namespaces repeat
# names of others, or that set macros, are named after ALONE (beside SOURCES) and stay their own.
set(CMAKE_UNITY_BUILD_BATCH_SIZE 10)
function(moe_compile_alone)
  if(ARGN)
    set_source_files_properties(${ARGN} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

# moe_library(NAME SOURCES a.cpp … ALONE b.cpp … DEPS public … PRIVATE_DEPS implementation only …)
function(moe_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;ALONE;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES} ${arg_ALONE})
  moe_compile_alone(${arg_ALONE})
  target_link_libraries(${name} PUBLIC moe_options ${arg_DEPS} PRIVATE moe_warnings ${arg_PRIVATE_DEPS})
endfunction()

# moe_tests_LABEL builds the test programs of one label, so that a sanitizer build makes only those that run under it.
foreach(label unit concurrent contract mpi bench e2e gpu)
  add_custom_target(moe_tests_${label})
endforeach()

# Tests spend their time in the libraries, and most of their build in the optimiser: -O1 is as quick to run.
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  set(moe_test_optimisation -O1)
endif()

# A test that hangs ends after this long. Under the thread sanitizer the longest takes eight minutes of one core.
set(moe_test_seconds 300)
if(MOE_SANITIZE)
  set(moe_test_seconds 1200)
endif()

# moe_test(NAME SOURCES a_test.cpp … ALONE b_test.cpp … DEPS … [LABELS …]): one test binary, one ctest entry.
function(moe_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SOURCES;ALONE;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${arg_SOURCES} ${arg_ALONE})
  moe_compile_alone(${arg_ALONE})
  set_target_properties(${name} PROPERTIES MOE_TEST ON)
  target_compile_options(${name} PRIVATE ${moe_test_optimisation})
  target_link_libraries(${name} PRIVATE moe_options moe_warnings ${arg_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  target_include_directories(${name} PRIVATE ${CMAKE_BINARY_DIR}/generated)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT ${moe_test_seconds})
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}")
  foreach(label IN LISTS arg_LABELS)
    if(NOT TARGET moe_tests_${label})
      message(FATAL_ERROR "${name}: label \"${label}\" is unknown (unit, concurrent, contract, mpi, bench, e2e, gpu)")
    endif()
    add_dependencies(moe_tests_${label} ${name})
  endforeach()
endfunction()

# Where tests find files and programs; in a header, so that only the files which need it depend on where the clone lies.
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/generated/test_folders.h CONTENT [[
#pragma once
#define MOE_SOURCE_DIR "@CMAKE_SOURCE_DIR@"
#define MOE_BINARY_DIR "@CMAKE_BINARY_DIR@"
]] @ONLY)

# moe_build_info: build_info.h with the version and the commit, brought up to date by every build.
add_custom_target(moe_build_info_header
  COMMAND ${CMAKE_COMMAND} -D SOURCE_DIR=${CMAKE_SOURCE_DIR} -D VERSION=${PROJECT_VERSION}
          -D OUTPUT=${CMAKE_BINARY_DIR}/generated/build_info.h -P ${CMAKE_SOURCE_DIR}/cmake/build_info.cmake
  BYPRODUCTS ${CMAKE_BINARY_DIR}/generated/build_info.h VERBATIM)
add_library(moe_build_info INTERFACE)
target_include_directories(moe_build_info INTERFACE ${CMAKE_BINARY_DIR}/generated)
add_dependencies(moe_build_info moe_build_info_header)
