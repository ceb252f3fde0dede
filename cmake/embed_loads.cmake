# Writes OUTPUT, a source file that holds every *.json of FOLDER: NAME.json as the recorded loads NAME, in the order of
# the names. Usage: cmake -D FOLDER=… -D OUTPUT=… -P embed_loads.cmake
file(GLOB files "${FOLDER}/*.json")
list(SORT files)
set(entries "")
list(LENGTH files count)
foreach(file IN LISTS files)
  get_filename_component(name "${file}" NAME_WE)
  file(READ "${file}" text)
  string(APPEND entries "    RecordedLoads{\"${name}\", R\"json(${text})json\"},\n")
endforeach()
file(WRITE "${OUTPUT}" "// Written by cmake/embed_loads.cmake.\n#include <array>\n\n#include \"bench/plan/recorded_loads.h\"\n\n"
  "namespace moe {\nnamespace {\n\nconstexpr std::array<RecordedLoads, ${count}> kLoads = {\n${entries}};\n\n"
  "}  // namespace\n\nstd::span<const RecordedLoads> AllRecordedLoads() { return kLoads; }\n\n}  // namespace moe\n")
