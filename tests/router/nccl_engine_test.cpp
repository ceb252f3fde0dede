// A router and its workers over the NCCL transport (fake NCCL, fake devices): the same tokens and logits as in one
// process, to the bit.
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "tests/router/engine_harness.h"
#include "tests/router/migration_property.h"
#include "tests/transport/nccl/nccl_threads.h"

namespace moe {
namespace {

// Ends over a fake NCCL that lives as long as this does, which is longer than the harness.
class NcclJob {
 public:
  InProcessEnds Connect(const TransportLimits& limits, int workers, std::size_t small_bytes) {
    threads_ = std::make_unique<NcclThreads>(
        NcclThreadsOptions{.limits = limits, .num_workers = workers, .small_bytes = small_bytes});
    InProcessEnds ends;
    ends.workers.resize(static_cast<std::size_t>(workers));
    Result<std::unique_ptr<Transport>> router =
        threads_->Connect([&](int worker, Result<std::unique_ptr<WorkerEndpoint>> endpoint) {
          MOE_CHECK(endpoint.ok(), endpoint.status().message());
          ends.workers[static_cast<std::size_t>(worker)] = *std::move(endpoint);
        });
    MOE_CHECK(router.ok(), router.status().message());
    threads_->Join();
    ends.routers.push_back(*std::move(router));
    return ends;
  }

 private:
  std::unique_ptr<NcclThreads> threads_;
};

std::vector<SequenceRequest> Requests(const std::string& model) {
  const Result<ModelConfig> config = ReadModelConfig(SourcePath(model));
  std::vector<SequenceRequest> requests;
  for (const std::size_t length : {std::size_t{40}, std::size_t{3}, std::size_t{17}}) {
    requests.push_back(ForModel(*config, Greedy(RandomTokens(length, length, config->vocab_size), 12)));
  }
  return requests;
}

void ExpectSameAsInProcess(const std::string& model, int workers, std::size_t small_bytes) {
  std::vector<Client> expected = EngineHarness({.model = model}).RunAll(Requests(model));
  NcclJob job;
  EngineHarness harness(
      {.model = model,
       .workers = workers,
       .micro_batches = {.most = 2},
       .connect = [&](const TransportLimits& limits, int n) { return job.Connect(limits, n, small_bytes); }});
  std::vector<Client> actual = harness.RunAll(Requests(model));
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) ExpectSameBits(*actual[i].output, *expected[i].output);
}

TEST(NcclEngine, ExpertsMove) {
  NcclJob job;
  HarnessOptions options{.workers = 3, .redundant_experts = 2, .max_step_tokens = 48};
  options.connect = [&](const TransportLimits& limits, int n) { return job.Connect(limits, n, 4096); };
  ExpectPlainBitsWhileMigrating({.options = options, .seed = 41, .batches = 1});
}

TEST(NcclEngine, TheBundledModelSaysTheSameOverSmallMessages) {
  ExpectSameAsInProcess("models/eight-languages-moe", 3, kNcclSmallBytes);
}

// A decode step's rows fit the first part of a message, a prefill's do not.
TEST(NcclEngine, TheBundledModelSaysTheSameOverMessagesOfBothForms) {
  ExpectSameAsInProcess("models/eight-languages-moe", 2, 4096);
}

TEST(NcclEngine, TheCollapsedModelSaysTheSame) {
  ExpectSameAsInProcess("models/eight-languages-collapsed", 2, kNcclSmallBytes);
}

TEST(NcclEngine, AMixtralSaysTheSame) { ExpectSameAsInProcess("tests/goldens/mixtral", 4, kNcclSmallBytes); }

}  // namespace
}  // namespace moe
