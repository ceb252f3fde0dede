// The bare MPI loop of the same bytes: MPI_Irecv and MPI_Isend to every rank and one MPI_Waitall; a worker's MPI_Recv
// and MPI_Send. No header, no checks, no deadline, and MPI's own way to wait.
#pragma once

#include <memory>

#include "bench/transport/exchange_path.h"
#include "transport/mpi/mpi_world.h"

namespace moe {

/// Rank 0's half, of exchanges of at most `largest`; `world` outlives it. Collective: the others call MakeRawMpiWorker.
Result<std::unique_ptr<RouterPath>> MakeRawMpiRouter(MpiWorld& world, const ExchangeBytes& largest);
Result<std::unique_ptr<WorkerPath>> MakeRawMpiWorker(MpiWorld& world, const ExchangeBytes& largest);

}  // namespace moe
