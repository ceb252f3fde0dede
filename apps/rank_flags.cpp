#include "apps/rank_flags.h"

#include <CLI/CLI.hpp>
#include <optional>

namespace moe {

void AddKvTypeFlag(FlagAdder& add, KvType& type) {
  add.AddChoice<KvType>("--kv-type", type, {{"f32", KvType::kF32}, {"bf16", KvType::kBf16}}, "f32",
                        "Type that the KV cache holds keys and values in; attention computes in fp32 with either");
}

void AddWeightCacheFlag(FlagAdder& add, std::string& choice) {
  add.Add("--weight-cache", choice,
          "Where int8 and int4 weights are kept for the next start; auto: in the model's folder, if that can be "
          "written; off: nowhere; else a folder for caches of any models");
}

void AddMicroBatchesFlag(FlagAdder& add, int& micro_batches) {
  add.AddChoice<int>("--micro-batches", micro_batches, {{"auto", 0}, {"1", 1}, {"2", 2}, {"3", 3}, {"4", 4}}, "auto",
                     "Parts of a step in flight at a time; auto: one or two, by the time that each takes");
  static_assert(kMaxMicroBatches == 4, "as many as the choices above");
}

void AddExpertFlags(FlagAdder& add, RankOptions& o) {
  add.Add("--model", o.model, "Folder of a Hugging Face checkpoint")->required();
  add.AddChoice<LoadFormat>("--load-format", o.load_format,
                            {{"auto", LoadFormat::kAuto}, {"dummy", LoadFormat::kDummy}}, "auto",
                            "dummy: config.json only, with random weights that are the same on every topology");
  add.AddChoice<std::optional<WeightType>>(
      "--weight-type", o.weight_type, WeightTypeChoices(), "auto",
      "Type that weights are held in; auto: the narrowest that loses nothing of what is stored");
  AddWeightCacheFlag(add, o.weight_cache);
  AddNamedPlacementFlags(add, o.placement, o.loads);
  add.Add("--redundant-experts", o.redundant_experts, "Extra slots per layer, over all workers")
      ->check(CLI::Range(0, 1'000'000));
  add.AddChoice<TransportChoice>(
      "--transport", o.transport,
      {{"auto", TransportChoice::kAuto},
       {"inprocess", TransportChoice::kInProcess},
       {"mpi", TransportChoice::kMpi},
       {"grpc", TransportChoice::kGrpc},
       {"grpc_streams", TransportChoice::kGrpcStreams},
       {"nccl", TransportChoice::kNccl}},
      "auto",
      "auto: mpi under mpirun with two or more ranks, grpc as router or worker, else inprocess; grpc: also between the "
      "ranks that mpirun started; grpc_streams: the same without memory that they share on one machine; nccl: between "
      "their devices, one for each rank, the router too");
  add.AddChoice<BackendChoice>(
      "--backend", o.backend,
      {{"auto", BackendChoice::kAuto}, {"cpu", BackendChoice::kCpu}, {"cuda", BackendChoice::kCuda}}, "auto",
      "Where experts are computed; auto: cuda where every rank that hosts experts has a device, else cpu");
  add.Add("--threads", o.threads, "Compute threads of each rank; 0: its share of the processors")
      ->check(CLI::Range(0, 4096));
  add.Add("--max-step-tokens", o.max_step_tokens, "Tokens of an engine step")
      ->check(CLI::Range(std::size_t{2}, std::size_t{1} << 20));
  add.AddChoice<ExchangeType>("--exchange-type", o.exchange_type,
                              {{"f32", ExchangeType::kF32}, {"bf16", ExchangeType::kBf16}}, "f32",
                              "Type of the rows between router and workers");
  add.AddSwitch("--wire-checksum", o.wire_checksum,
                "Sum up what travels between router and workers, and fail where it arrives changed");
  add.AddSeconds("--exchange-timeout", o.exchange_timeout, "Seconds that a worker may take to answer");
  add.AddSeconds("--load-timeout", o.load_timeout, "Seconds that workers may take to load");
}

void AddRankFlags(FlagAdder& add, RankOptions& o) {
  AddExpertFlags(add, o);
  add.AddChoice<std::optional<WeightType>>(
      "--attention-weight-type", o.attention_weight_type, WeightTypeChoices(), "auto",
      "Type of attention and head; auto: int8 where --weight-type is int4, else --weight-type");
  AddKvTypeFlag(add, o.kv_type);
  add.Add("--routing", o.routing,
          "gate: the model's own; else synthetic, for benchmarks: uniform, zipf:S, hot:N,SHARE or trace:FILE")
      ->check([](const std::string& value) { return ParseRouting(value).status().message(); });
  add.Add("--routing-seed", o.routing_seed, "Names which experts synthetic routing favours and which a token takes");
}

}  // namespace moe
