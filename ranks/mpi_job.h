// The ranks of an MPI job before they take their roles.
#pragma once

#include <string>
#include <string_view>

#include "core/status.h"
#include "ranks/rank_setup.h"
#include "transport/mpi/mpi_world.h"

namespace moe {

/// Rank 0 is the router, the others are workers; for a job of at least two ranks.
RankPlace PlaceOf(const MpiWorld& world);

/// All ranks agree whether to go on: one rank's failure is every rank's, and rank 0 says why, once, on stderr with
/// `program` before it. The exit code to end with, 0 to go on. Collective.
Result<int> AgreeToStart(MpiWorld& world, std::string_view program, int exit_code, const std::string& failure);

/// Whether this process speaks for the job. Before MPI starts, only the environment says who is who.
bool IsFirstLaunchedRank();

/// Leaves without MPI's farewell, in which a rank that does not answer would not take part; that ends the job.
[[noreturn]] void LeaveJob(int exit_code);

}  // namespace moe
