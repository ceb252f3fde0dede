#include "router/worker_fleet.h"

#include <gtest/gtest.h>

namespace moe {
namespace {

TEST(WorkersOn, AreThoseThatAnnounceTheHost) {
  const std::vector<WorkerDescription> workers = {{.host = "node-1"}, {.host = "node-10"}, {}, {.host = "node-1"}};
  EXPECT_EQ(WorkersOn("node-1", workers), (WorkerMask{1, 0, 0, 1}));
  EXPECT_EQ(WorkersOn("node", workers), NoWorkers(4));
  EXPECT_EQ(WorkersOn("", workers), NoWorkers(4)) << "two that say nothing need not be one machine";
}

}  // namespace
}  // namespace moe
