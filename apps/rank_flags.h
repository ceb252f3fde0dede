// The flags that choose an engine, the same in every program that runs one.
#pragma once

#include "apps/flags.h"
#include "ranks/rank_setup.h"

namespace moe {

/// `options` outlives the parsing. What concerns the experts and the way to them.
void AddExpertFlags(FlagAdder& add, RankOptions& options);
/// And the rest, but --micro-batches, of which a benchmark takes a list.
void AddRankFlags(FlagAdder& add, RankOptions& options);
void AddMicroBatchesFlag(FlagAdder& add, int& micro_batches);

/// --kv-type and --weight-cache, for a program without the others.
void AddKvTypeFlag(FlagAdder& add, KvType& type);
void AddWeightCacheFlag(FlagAdder& add, std::string& choice);

}  // namespace moe
