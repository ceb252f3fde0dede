# Writes OUTPUT, a source file that holds every *.json of FOLDER: NAME.json as the model NAME, counts.json apart. The
# names are in order. Usage: cmake -D FOLDER=… -D OUTPUT=… -P embed_models.cmake
file(GLOB files "${FOLDER}/*.json")
list(SORT files)
set(source "// Written by cmake/embed_models.cmake.\n#include <array>\n\n#include \"bench/plan/models.h\"\n\nnamespace moe {\nnamespace {\n\n")
set(entries "")
set(count 0)
foreach(file IN LISTS files)
  get_filename_component(name "${file}" NAME)
  string(REGEX REPLACE "\\.json$" "" name "${name}")
  file(READ "${file}" text)
  if(name STREQUAL "counts")
    string(APPEND source "constexpr std::string_view kCounts = R\"json(${text})json\";\n")
  else()
    string(APPEND entries "    PublishedModel{\"${name}\", R\"json(${text})json\"},\n")
    math(EXPR count "${count} + 1")
  endif()
endforeach()
string(APPEND source "constexpr std::array<PublishedModel, ${count}> kModels = {\n${entries}};\n\n}  // namespace\n\n"
  "std::span<const PublishedModel> PublishedModels() { return kModels; }\n"
  "std::string_view PublishedCountsJson() { return kCounts; }\n\n}  // namespace moe\n")
file(WRITE "${OUTPUT}" "${source}")
