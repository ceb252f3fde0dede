// What every rank serves and says beside its role: metrics over HTTP, the labels that tell builds apart, its log.
#pragma once

#include <memory>
#include <string>

#include "apps/serve_options.h"
#include "core/status.h"
#include "metrics/metrics.h"
#include "model/dispatch_format.h"

namespace moe {

/// The metrics of one process and, unless switched off, the server that shows them.
class RankMetrics {
 public:
  struct Identity {
    std::string role;
    std::string transport;
    std::string device = "cpu";  // where the rank's experts, if it has any, are computed
    std::uint64_t expert_parameters = 0;
    std::uint64_t dense_parameters = 0;
    std::uint64_t expert_bytes = 0;
    std::uint64_t dense_bytes = 0;
  };

  /// Starts the server. UNAVAILABLE naming the address when it is taken.
  static Result<std::unique_ptr<RankMetrics>> Start(const ServeSetup& setup);

  MetricsRegistry& registry() { return registry_; }
  /// Null unless --expert-metrics, and on workers.
  MetricsRegistry* experts() { return experts_.get(); }
  /// Exports what this rank is and hosts.
  void Describe(const ServeSetup& setup, const Identity& identity);
  /// Shows the registries. Before this, a scrape gets 404: a rank that has not loaded has no figures.
  void Serve();
  /// Empty when off.
  std::string address() const { return server_ ? server_->address() : ""; }

 private:
  RankMetrics() = default;
  MetricsRegistry registry_;
  std::unique_ptr<MetricsRegistry> experts_;
  std::unique_ptr<MetricsServer> server_;
};

/// Logs what became of this rank's cache of weights, once it has loaded.
void LogWeightCache(const ServeSetup& setup);

/// Writes `json` to the file that --ready-file names, if any, so that whoever sees the file sees all of it.
Status WriteReadyFile(const ServeSetup& setup, const std::string& json);

/// The part of a description that all ranks fill alike.
WorkerDescription DescribeRank(const ServeSetup& setup, const RankMetrics& metrics);

}  // namespace moe
