#include "router/replica_choice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace moe {
namespace {

using Rows = std::vector<std::uint32_t>;

// One layer; every expert on a random set of workers.
struct Layer {
  Layer(int workers, std::size_t experts, std::size_t most_replicas, std::mt19937_64& random)
      : placement{.num_experts = static_cast<int>(experts), .workers = workers} {
    std::vector<std::vector<int>> slots(static_cast<std::size_t>(workers));
    std::vector<std::size_t> order(slots.size());
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t expert = 0; expert < experts; ++expert) {
      std::ranges::shuffle(order, random);
      const std::size_t replicas = 1 + random() % std::min(most_replicas, order.size());
      for (std::size_t i = 0; i < replicas; ++i) slots[order[i]].push_back(static_cast<int>(expert));
      hosts.push_back(0);
      for (std::size_t i = 0; i < replicas; ++i) hosts.back() |= 1u << order[i];
    }
    placement.layers.push_back({0, std::move(slots)});
    table = std::make_unique<ReplicaTable>(placement);
  }
  std::span<const ReplicaSlot> replicas(std::size_t expert) const { return table->replicas(0, expert); }

  Placement placement;
  std::vector<std::uint32_t> hosts;  // by expert: a bit for each worker
  std::unique_ptr<ReplicaTable> table;
};

Rows RandomRows(std::size_t experts, std::uint32_t most, std::mt19937_64& random) {
  Rows rows(experts);
  // Few experts have most of them, some have none.
  for (std::uint32_t& of_expert : rows)
    if (random() % 4 > 0) of_expert = static_cast<std::uint32_t>(random() % (1 + random() % most));
  return rows;
}

// The least that the fullest worker can have beside `before`: of each set of workers, what can go nowhere else and what
// they have already, shared out evenly (Hall's theorem, for all sets).
std::uint32_t Optimum(const Layer& layer, const Rows& rows, const Rows& before) {
  std::uint32_t optimum = std::ranges::max(before);
  for (std::uint32_t set = 1; set < 1u << before.size(); ++set) {
    std::uint32_t forced = 0;
    for (std::size_t e = 0; e < rows.size(); ++e)
      if ((layer.hosts[e] & ~set) == 0) forced += rows[e];
    if (forced == 0) continue;
    for (std::size_t w = 0; w < before.size(); ++w)
      if ((set >> w & 1) != 0) forced += before[w];
    const auto size = static_cast<std::uint32_t>(std::popcount(set));
    optimum = std::max(optimum, (forced + size - 1) / size);
  }
  return optimum;
}

WorkerMask RandomMask(int workers, std::mt19937_64& random) {
  WorkerMask mask = NoWorkers(workers);
  for (std::uint8_t& meant : mask) meant = random() % 2;
  return mask;
}

std::uint32_t RowsOn(const WorkerMask& mask, const Rows& rows) {
  std::uint32_t sum = 0;
  for (std::size_t w = 0; w < rows.size(); ++w) sum += mask[w] != 0 ? rows[w] : 0;
  return sum;
}

Rows InTurns(const Layer& layer, const Rows& rows) {
  Rows loads(static_cast<std::size_t>(layer.placement.workers));
  for (std::size_t e = 0; e < rows.size(); ++e)
    for (std::uint32_t i = 0; i < rows[e]; ++i) ++loads[layer.replicas(e)[i % layer.replicas(e).size()].worker.index()];
  return loads;
}

Rows WorkerRows(const ReplicaChoice& choice) { return {choice.worker_rows().begin(), choice.worker_rows().end()}; }

// Takes all rows, k a token, experts with the most left first; returns what each worker really got. `sent` grows by the
// distinct workers of each token.
Rows TakeAll(const Layer& layer, Rows left, std::size_t k, bool prefer, ReplicaChoice& choice, std::size_t& sent) {
  Rows got(static_cast<std::size_t>(layer.placement.workers));
  std::vector<std::size_t> experts(left.size());
  std::iota(experts.begin(), experts.end(), 0);
  while (std::ranges::max(left) > 0) {
    std::ranges::stable_sort(experts, std::greater<>(), [&](std::size_t e) { return left[e]; });
    std::uint32_t workers = 0;
    choice.BeginToken();
    for (const bool several : {false, true}) {
      for (std::size_t j = 0; j < std::min(k, experts.size()); ++j) {
        const std::size_t expert = experts[j];
        const auto replicas = layer.replicas(expert);
        if (left[expert] == 0 || (replicas.size() > 1) != several) continue;
        --left[expert];
        const WorkerId worker = (several ? choice.Take(expert, replicas) : replicas[0]).worker;
        if (prefer) choice.GoesTo(worker);
        EXPECT_NE(layer.hosts[expert] >> worker.index() & 1, 0u);
        workers |= 1u << worker.index();
        ++got[worker.index()];
      }
    }
    sent += static_cast<std::size_t>(std::popcount(workers));
  }
  return got;
}

TEST(ReplicaChoice, TheFullestWorkerHasNoMoreThanAnyDealingCouldGiveIt) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 2000; ++i) {
    const int workers = 1 + static_cast<int>(random() % 8);
    const std::size_t experts = 1 + random() % 16;
    const Layer layer(workers, experts, 1 + random() % 4, random);
    const WorkerMask local = RandomMask(workers, random);
    ReplicaChoice choice(experts, workers);
    choice.SetLocal(local);
    choice.BeginLayer();
    Rows before(static_cast<std::size_t>(workers));
    for (int part = 0; part < 3; ++part) {
      const Rows rows = RandomRows(experts, 40, random);
      choice.Deal(*layer.table, 0, rows);
      Rows after = WorkerRows(choice);
      ASSERT_EQ(std::ranges::max(after), Optimum(layer, rows, before)) << "case " << i << ", part " << part;
      ASSERT_EQ(std::accumulate(after.begin(), after.end(), 0u),
                std::accumulate(before.begin(), before.end(), 0u) + std::accumulate(rows.begin(), rows.end(), 0u));
      if (part == 0) {
        ASSERT_LE(std::ranges::max(after), std::ranges::max(InTurns(layer, rows)));
      }
      std::size_t sent = 0;
      const Rows got = TakeAll(layer, rows, 1 + random() % 4, true, choice, sent);
      ASSERT_GE(RowsOn(local, WorkerRows(choice)), RowsOn(local, after)) << "no row leaves the machine: case " << i;
      // Rows that joined others of their token have made nobody fuller than the fullest.
      ASSERT_LE(std::ranges::max(WorkerRows(choice)), std::ranges::max(after)) << "case " << i;
      for (std::size_t w = 0; w < got.size(); ++w)
        ASSERT_EQ(choice.worker_rows()[w], before[w] + got[w]) << "as dealt, so taken: case " << i;
      before = WorkerRows(choice);
    }
  }
}

TEST(ReplicaChoice, ManyWorkersAndExpertsAreDealtToTheMeanWhereReplicasAllowIt) {
  std::mt19937_64 random(8);
  const Layer layer(12, 256, 3, random);
  ReplicaChoice choice(256, 12);
  for (int step = 0; step < 20; ++step) {
    const Rows rows = RandomRows(256, 100, random);
    choice.BeginLayer();
    choice.Deal(*layer.table, 0, rows);
    const Rows got = WorkerRows(choice);
    EXPECT_EQ(std::ranges::max(got), Optimum(layer, rows, Rows(12)));
  }
}

TEST(ReplicaChoice, ATokensRowsShareWorkersAsFarAsTheBalanceAllows) {
  std::mt19937_64 random(9);
  std::size_t with = 0, without = 0;
  for (int i = 0; i < 300; ++i) {
    const Layer layer(6, 16, 3, random);
    const Rows rows = RandomRows(16, 60, random);
    ReplicaChoice choice(16, 6);
    choice.Deal(*layer.table, 0, rows);
    TakeAll(layer, rows, 4, true, choice, with);
    choice.BeginLayer();
    choice.Deal(*layer.table, 0, rows);
    TakeAll(layer, rows, 4, false, choice, without);
  }
  EXPECT_LT(with, without);
}

TEST(ReplicaChoice, LocalWorkersGetNoFewerRowsThanWithoutThePreference) {
  std::mt19937_64 random(10);
  std::uint64_t with = 0, without = 0;
  for (int i = 0; i < 500; ++i) {
    const Layer layer(6, 16, 3, random);
    const Rows rows = RandomRows(16, 60, random);
    const WorkerMask local = RandomMask(6, random);
    ReplicaChoice plain(16, 6);
    plain.Deal(*layer.table, 0, rows);
    ReplicaChoice choice(16, 6);
    choice.SetLocal(local);
    choice.Deal(*layer.table, 0, rows);
    ASSERT_GE(RowsOn(local, WorkerRows(choice)), RowsOn(local, WorkerRows(plain))) << "case " << i;
    ASSERT_EQ(std::ranges::max(WorkerRows(choice)), std::ranges::max(WorkerRows(plain))) << "case " << i;
    with += RowsOn(local, WorkerRows(choice));
    without += RowsOn(local, WorkerRows(plain));
    ReplicaChoice again(16, 6);
    again.SetLocal(local);
    again.Deal(*layer.table, 0, rows);
    ASSERT_EQ(WorkerRows(again), WorkerRows(choice)) << "case " << i;
  }
  EXPECT_GT(with, without + without / 50);
}

Placement Slots(std::vector<std::vector<int>> slots, int experts) {
  Placement placement{.num_experts = experts, .workers = static_cast<int>(slots.size())};
  placement.layers.push_back({0, std::move(slots)});
  return placement;
}

TEST(ReplicaChoice, AnExpertThatFitsOneWorkerIsNotSplit) {
  // Three experts on both workers; 4 + 2 + 2 rows.
  const ReplicaTable table(Slots({{0, 1, 2}, {0, 1, 2}}, 3));
  ReplicaChoice choice(3, 2);
  choice.Deal(table, 0, Rows{2, 4, 2});
  EXPECT_EQ(WorkerRows(choice), (Rows{4, 4}));
  const auto worker_of = [&](std::size_t expert) {
    choice.BeginToken();
    return choice.Take(expert, table.replicas(0, expert)).worker.value();
  };
  for (const std::size_t expert : {1u, 1u, 1u, 1u}) EXPECT_EQ(worker_of(expert), 0);
  for (const std::size_t expert : {0u, 0u, 2u, 2u}) EXPECT_EQ(worker_of(expert), 1);
}

TEST(ReplicaChoice, RowsMoveOverOtherWorkersToWhereThereIsRoom) {
  // Expert 0 can go to workers 0 and 1, expert 1 to 1 and 2; expert 2 fills worker 0.
  const ReplicaTable table(Slots({{0, 2}, {0, 1}, {1}}, 3));
  ReplicaChoice choice(3, 3);
  choice.Deal(table, 0, Rows{8, 8, 8});
  EXPECT_EQ(WorkerRows(choice), (Rows{8, 8, 8}));
}

TEST(ReplicaChoice, ALocalWorkerTakesAnExpertWholeOrWhatItsRoomHolds) {
  // Expert 0 fills worker 2. Worker 1 is local.
  const ReplicaTable table(Slots({{1, 2}, {1, 2, 3}, {0}}, 4));
  ReplicaChoice choice(4, 3);
  choice.Deal(table, 0, Rows{10, 6, 4, 3});
  EXPECT_EQ(WorkerRows(choice), (Rows{6, 7, 10})) << "expert 1 to worker 0, expert 2 beside expert 3";
  choice.SetLocal({0, 1, 0});
  choice.BeginLayer();
  choice.Deal(table, 0, Rows{10, 6, 4, 3});
  EXPECT_EQ(WorkerRows(choice), (Rows{6, 7, 10})) << "three rows have room, and would split expert 1";
  choice.BeginLayer();
  choice.Deal(table, 0, Rows{10, 3, 2, 3});
  EXPECT_EQ(WorkerRows(choice), (Rows{0, 8, 10})) << "both fit";
  // Two of expert 1's rows must go to worker 1, which then takes more of them.
  choice.BeginLayer();
  choice.Deal(table, 0, Rows{4, 6, 0, 0});
  EXPECT_EQ(std::ranges::max(WorkerRows(choice)), 4u);
  EXPECT_EQ(choice.worker_rows()[1], 4u);
}

TEST(ReplicaChoice, ALocalRowDoesNotLeaveTheMachineToJoinItsToken) {
  // Each worker has one expert of its own, and both expert 0; worker 0 is local.
  const ReplicaTable table(Slots({{0, 1}, {0, 2}, {3}}, 4));
  const auto remote_rows = [&](bool prefer) {
    ReplicaChoice choice(4, 3);
    if (prefer) choice.SetLocal({1, 0, 0});
    // Expert 0 has 8 rows, of which worker 0 has room for 6.
    choice.Deal(table, 0, Rows{8, 0, 2, 6});
    std::uint32_t remote = 0;
    for (int row = 0; row < 8; ++row) {
      choice.BeginToken();
      choice.GoesTo(WorkerId(1));
      if (choice.Take(0, table.replicas(0, 0)).worker == WorkerId(1)) ++remote;
    }
    return remote;
  };
  EXPECT_EQ(remote_rows(false), 4u);
  EXPECT_EQ(remote_rows(true), 2u);
}

TEST(ReplicaChoice, PartsOfALayerAreBalancedTogetherAndLayersAlone) {
  const ReplicaTable table(Slots({{0, 1}, {1, 2}}, 3));
  ReplicaChoice choice(3, 2);
  choice.Deal(table, 0, Rows{6, 0, 0});
  EXPECT_EQ(WorkerRows(choice), (Rows{6, 0}));
  choice.Deal(table, 0, Rows{0, 8, 0});
  EXPECT_EQ(WorkerRows(choice), (Rows{7, 7}));
  choice.BeginLayer();
  choice.Deal(table, 0, Rows{0, 8, 0});
  EXPECT_EQ(WorkerRows(choice), (Rows{4, 4}));
}

TEST(ReplicaChoice, WithoutRowsNothingIsDealt) {
  const ReplicaTable table(Slots({{0}, {0}}, 1));
  ReplicaChoice choice(1, 2);
  choice.Deal(table, 0, Rows{0});
  EXPECT_EQ(WorkerRows(choice), (Rows{0, 0}));
}

}  // namespace
}  // namespace moe
