add_executable(moe_bench moe_bench.cpp bench_engine.cpp bench_flags.cpp bench_job.cpp bench_kernels.cpp bench_load.cpp
               bench_placement.cpp bench_quality.cpp bench_replay.cpp bench_transport.cpp flags.cpp rank_flags.cpp)
target_link_libraries(moe_bench PRIVATE moe_options moe_warnings moe_bench_client moe_bench_engine moe_bench_plan moe_bench_transport
                      moe_bench_transport_grpc moe_bench_transport_mpi moe_ranks_mpi CLI11::CLI11)
