#include "ranks/mpi_job.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace moe {

RankPlace PlaceOf(const MpiWorld& world) {
  return {.topology = {.workers = world.size() - 1, .embedded = false},
          .rank = world.rank(),
          .node_local_rank = world.node_local_rank(),
          .node_local_size = world.node_local_size(),
          .router_is_here = world.bell(Rank(0)) != nullptr};
}

Result<int> AgreeToStart(MpiWorld& world, std::string_view program, int exit_code, const std::string& failure) {
  MOE_ASSIGN_OR_RETURN(const std::vector<std::string> failures,
                       world.GatherStrings(exit_code == 0 ? "" : Cat(exit_code, " ", failure)));
  std::string verdict = "0";
  for (const std::string& first : failures) {
    if (first.empty()) continue;
    verdict = first.substr(0, first.find(' '));
    std::fprintf(stderr, "%s: %s\n", std::string(program).c_str(), first.substr(verdict.size() + 1).c_str());
    break;
  }
  MOE_ASSIGN_OR_RETURN(const std::string agreed, world.Broadcast(verdict));
  return std::stoi(agreed);
}

bool IsFirstLaunchedRank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"})
    if (const char* rank = std::getenv(name); rank != nullptr) return std::string_view(rank) == "0";
  return true;
}

void LeaveJob(int exit_code) {
  std::fflush(nullptr);
  std::_Exit(exit_code);
}

}  // namespace moe
