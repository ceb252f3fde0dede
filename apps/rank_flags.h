// The flags that choose an engine, the same in every program that runs one.
#pragma once

#include "apps/flags.h"
#include "ranks/rank_setup.h"

namespace moe {

/// `options` outlives the parsing.
void AddRankFlags(FlagAdder& add, RankOptions& options);

/// --kv-type, for a program without the others.
void AddKvTypeFlag(FlagAdder& add, KvType& type);

}  // namespace moe
