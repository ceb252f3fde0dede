add_executable(moe_plan moe_plan.cpp flags.cpp plan_compare.cpp plan_cost.cpp plan_flags.cpp plan_memory.cpp plan_params.cpp
               plan_placement.cpp plan_server.cpp)
target_link_libraries(moe_plan PRIVATE moe_options moe_warnings moe_build_info moe_bench_plan moe_rpc moe_proto_router CLI11::CLI11 gRPC::grpc++)
