add_executable(moe_bench moe_bench.cpp)
target_link_libraries(moe_bench PRIVATE moe_options moe_warnings moe_bench_client CLI11::CLI11)
