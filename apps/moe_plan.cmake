add_executable(moe_plan moe_plan.cpp plan_options.cpp flags.cpp)
target_link_libraries(moe_plan PRIVATE moe_options moe_warnings moe_build_info moe_bench_plan CLI11::CLI11)
