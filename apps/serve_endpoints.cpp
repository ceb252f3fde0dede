#include "apps/serve_endpoints.h"

#include <spdlog/spdlog.h>

#include "build_info.h"
#include "core/replace_file.h"
#include "ranks/rank_device.h"

namespace moe {

Result<std::unique_ptr<RankMetrics>> RankMetrics::Start(const ServeSetup& setup) {
  std::unique_ptr<RankMetrics> metrics(new RankMetrics());
  const ServeOptions& options = setup.options;
  if (options.expert_metrics && setup.rank == setup.topology.router())
    metrics->experts_ = std::make_unique<MetricsRegistry>(MetricsRegistry::Process::kLeaveOut);
  if (options.metrics_port == 0) return metrics;
  const int port = options.metrics_port ? *options.metrics_port + setup.rank.value() : 0;
  MOE_ASSIGN_OR_RETURN(metrics->server_, MetricsServer::Start(options.metrics_host, port));
  return metrics;
}

void RankMetrics::Describe(const ServeSetup& setup, const Identity& identity) {
  registry_
      .AddGauge("moe_build_info", "1; what runs here.",
                {{"version", kBuildVersion},
                 {"commit", kBuildCommit},
                 {"role", identity.role},
                 {"transport", identity.transport},
                 {"backend", std::string(BackendName(identity.device))},
                 {"weight_type", std::string(Name(setup.weight_types.mlps))}})
      .Set(1);
  const auto part = [&](const char* name, std::uint64_t parameters, std::uint64_t bytes) {
    registry_.AddGauge("moe_rank_parameters", "Parameters that this rank hosts.", {{"part", name}})
        .Set(static_cast<double>(parameters));
    registry_.AddGauge("moe_rank_weight_bytes", "Memory of the weights that this rank hosts.", {{"part", name}})
        .Set(static_cast<double>(bytes));
  };
  part("experts", identity.expert_parameters, identity.expert_bytes);
  part("dense", identity.dense_parameters, identity.dense_bytes);
}

void RankMetrics::Serve() {
  if (!server_) return;
  server_->Serve("/metrics", registry_);
  if (experts_) server_->Serve("/metrics/experts", *experts_);
}

void LogWeightCache(const ServeSetup& setup) {
  if (!setup.weight_cache) return;
  const WeightCacheReport report = setup.weight_cache->report();
  for (const std::string& warning : report.Warnings()) spdlog::warn("rank {}: {}", setup.rank.value(), warning);
  if (const std::string summary = report.Summary(); !summary.empty())
    spdlog::info("rank {}: {}", setup.rank.value(), summary);
}

Status WriteReadyFile(const ServeSetup& setup, const std::string& json) {
  const std::filesystem::path& path = setup.options.ready_file;
  if (path.empty() || ReplaceFile(path, json + "\n")) return Status::Ok();
  return InvalidArgument("--ready-file ", path.string(), " cannot be written");
}

WorkerDescription DescribeRank(const ServeSetup& setup, const RankMetrics& metrics) {
  WorkerDescription description = DescribeRank(setup);
  description.metrics_address = metrics.address();
  return description;
}

}  // namespace moe
