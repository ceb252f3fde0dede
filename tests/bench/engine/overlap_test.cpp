// The prediction of micro-batches beside a simulation that knows nothing of its formula.
#include "bench/engine/overlap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace moe {
namespace {

// Two machines, each with a queue served in the order of arrival, and a wire that delays. Events are handled in the
// order of time; nothing here adds up rounds.
class PingPong {
 public:
  PingPong(const OverlapTimes& times, int parts, std::size_t layers)
      : times_(times), layers_(layers), finished_(static_cast<std::size_t>(parts)) {
    for (std::size_t part = 0; part < finished_.size(); ++part) dense_.queue.push_back({.at = 0, .part = part});
  }

  /// When the last part is back from its last layer.
  double Run() {
    double end = 0;
    std::size_t left = finished_.size() * layers_;
    while (left > 0) {
      // Of the two machines the one whose next start is earlier.
      const double dense = dense_.NextStart(), expert = expert_.NextStart();
      if (dense <= expert) {
        const Arrival done = dense_.Serve(times_.dense);
        expert_.Arrive({.at = done.at + times_.transfer, .part = done.part});
        continue;
      }
      const Arrival done = expert_.Serve(times_.expert);
      const double back = done.at + times_.transfer;
      end = std::max(end, back);
      --left;
      if (++finished_[done.part] < layers_) dense_.Arrive({.at = back, .part = done.part});
    }
    return end;
  }

 private:
  struct Arrival {
    double at = 0;
    std::size_t part = 0;
  };
  struct Machine {
    std::vector<Arrival> queue;
    double free_at = 0;

    double NextStart() const {
      if (queue.empty()) return std::numeric_limits<double>::infinity();
      return std::max(free_at, First()->at);
    }
    std::vector<Arrival>::const_iterator First() const {
      return std::ranges::min_element(queue, {}, &Arrival::at);  // the first of those that came at one time
    }
    void Arrive(Arrival arrival) { queue.push_back(arrival); }
    Arrival Serve(double seconds) {
      Arrival done = *First();
      free_at = NextStart() + seconds;
      queue.erase(First());
      done.at = free_at;
      return done;
    }
  };

  const OverlapTimes times_;
  const std::size_t layers_;
  std::vector<std::size_t> finished_;  // layers, by part
  Machine dense_;
  Machine expert_;
};

double Simulated(const OverlapTimes& times, int parts, std::size_t layers) {
  return PingPong(times, parts, layers).Run();
}

TEST(OverlappedSeconds, IsWhatASimulationTakes) {
  const struct {
    const char* name;
    OverlapTimes times;
    int parts;
    std::size_t layers;
    double seconds;
  } cases[] = {
      {"nothing overlaps in one part", {.dense = 3, .expert = 2, .transfer = 1}, 1, 4, 28},
      {"balanced sides hide short transfers", {.dense = 4, .expert = 4, .transfer = 1}, 3, 8, 102},
      {"the dense side is the slower one", {.dense = 5, .expert = 2, .transfer = 0.5}, 2, 6, 63},
      {"the expert side is the slower one", {.dense = 1, .expert = 6, .transfer = 0.25}, 2, 6, 73.5},
      {"two parts cannot hide long transfers", {.dense = 2, .expert = 2, .transfer = 3}, 2, 5, 52},
      {"four parts cannot either", {.dense = 1, .expert = 1, .transfer = 5}, 4, 3, 39},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    EXPECT_DOUBLE_EQ(OverlappedSeconds(c.times, c.parts, c.layers), c.seconds);
    EXPECT_DOUBLE_EQ(Simulated(c.times, c.parts, c.layers), c.seconds);
  }
}

TEST(OverlappedSeconds, IsWhatASimulationTakesWhateverTheTimes) {
  for (const double dense : {0.5, 1.0, 2.5})
    for (const double expert : {0.25, 1.0, 3.0})
      for (const double transfer : {0.0, 0.125, 1.0, 4.0})
        for (int parts = 1; parts <= kMaxMicroBatches; ++parts)
          for (const std::size_t layers : {1u, 2u, 7u}) {
            const OverlapTimes times{.dense = dense, .expert = expert, .transfer = transfer};
            EXPECT_DOUBLE_EQ(OverlappedSeconds(times, parts, layers), Simulated(times, parts, layers))
                << dense << " " << expert << " " << transfer << ", " << parts << " parts, " << layers << " layers";
          }
}

TEST(OverlappedSeconds, OfHiddenTransfersIsTheSlowerSidesTime) {
  // m >= 2 (1 + T_c / T_f), T_a = T_e: but for the first and the last round nothing waits.
  const OverlapTimes times{.dense = 2, .expert = 2, .transfer = 1};
  EXPECT_DOUBLE_EQ(OverlappedSeconds(times, 3, 100) - OverlappedSeconds(times, 3, 99), 3 * 2);
  EXPECT_DOUBLE_EQ(OverlappedSeconds(times, 2, 100) - OverlappedSeconds(times, 2, 99), 2 + 2 + 2 * 1);
}

StepReport SomeStep(std::span<const WorkerStep> workers) {
  return {.micro_batches = 1,
          .attention_seconds = 5,
          .gate_seconds = 1,
          .head_seconds = 3,
          .sample_seconds = 1,
          .exchange = {.dispatch = 1, .wait = 12, .experts = 8, .combine = 1},
          .workers = workers};
}

TEST(StepPhases, AreSharedOutToLayers) {
  const std::vector<WorkerStep> workers = {{.busy_seconds = 7}, {.busy_seconds = 6}};
  StepPhases phases;
  phases.Add(SomeStep(workers));
  phases.Add(SomeStep(workers));
  EXPECT_EQ(phases.steps(), 2u);
  const OverlapTimes times = phases.times(4);
  EXPECT_DOUBLE_EQ(times.dense, 2);       // (5 + 1 + 1 + 1) / 4
  EXPECT_DOUBLE_EQ(times.expert, 2);      // 8 / 4: in some layers the second worker was the longer one
  EXPECT_DOUBLE_EQ(times.transfer, 0.5);  // (12 − 8) / 4 / 2
  EXPECT_DOUBLE_EQ(phases.rest(25), 5);   // 25 − 8 − 12
  EXPECT_DOUBLE_EQ(phases.rest(19), 0);
}

TEST(StepPhases, CountWhatWorkersDoWhileTheRouterComputesSharedExperts) {
  const std::vector<WorkerStep> workers = {{.busy_seconds = 10}, {.busy_seconds = 16}};
  StepPhases phases;
  phases.Add(SomeStep(workers));
  const OverlapTimes times = phases.times(4);
  EXPECT_DOUBLE_EQ(times.expert, 4);    // 16 / 4; 8 of it were waited for
  EXPECT_DOUBLE_EQ(times.transfer, 0);  // all of it was hidden
}

TEST(StepPhases, AddUp) {
  const std::vector<WorkerStep> workers = {{.busy_seconds = 16}};
  StepPhases one, sum;
  one.Add(SomeStep(workers));
  sum += one;
  sum += one;
  EXPECT_EQ(sum.steps(), 2u);
  EXPECT_DOUBLE_EQ(sum.times(4).dense, one.times(4).dense);
  EXPECT_DOUBLE_EQ(sum.times(4).expert, one.times(4).expert);
  EXPECT_DOUBLE_EQ(sum.rest(25), one.rest(25));
}

TEST(PredictOverlap, OfStepsThatAreNotCutIsWhatTheyTook) {
  const std::vector<WorkerStep> workers = {{.busy_seconds = 7}};
  StepPhases phases;
  phases.Add(SomeStep(workers));
  const OverlapPrediction prediction = PredictOverlap(phases, phases, 25, 1, 4);
  EXPECT_DOUBLE_EQ(prediction.step_seconds, 25);
  EXPECT_DOUBLE_EQ(prediction.error(25), 0);
  EXPECT_DOUBLE_EQ(prediction.error(20), 0.25);
  EXPECT_DOUBLE_EQ(prediction.error(50), -0.5);
}

TEST(PredictOverlap, TakesTimesOfPartsAndTheRestOfTheWhole) {
  const std::vector<WorkerStep> workers = {{.busy_seconds = 7}};
  StepPhases part, whole;
  part.Add(SomeStep(workers));
  StepReport twice = SomeStep(workers);
  twice.attention_seconds = 13;
  whole.Add(twice);
  const OverlapPrediction prediction = PredictOverlap(part, whole, 40, 2, 4);
  EXPECT_DOUBLE_EQ(prediction.rest_seconds, 40 - 16 - 12);
  EXPECT_EQ(prediction.layers, 4u);
  // Rounds of 2 + 2 + 1, the slower side 2: 5 + 2 · 7 = 19 and 4 · 5 + 2 = 22.
  EXPECT_DOUBLE_EQ(prediction.step_seconds, 12 + 22);
}

TEST(MicroBatchesOf, AreNoMoreThanRows) {
  EXPECT_EQ(MicroBatchesOf(1, 4), 1);
  EXPECT_EQ(MicroBatchesOf(3, 4), 3);
  EXPECT_EQ(MicroBatchesOf(512, 2), 2);
  EXPECT_EQ(RowsOfPart(512, 1), 512u);
  EXPECT_EQ(RowsOfPart(32, 3), 11u);
  EXPECT_EQ(RowsOfPart(3, 3), 1u);
}

}  // namespace
}  // namespace moe
