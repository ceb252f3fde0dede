// The only door to prometheus-cpp: named families of counters, gauges and histograms, and the HTTP server that a
// Prometheus scrapes. Names, labels and units: docs/metrics.md.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/status.h"

namespace moe {

/// Label names are constants of the code. Label values must come from a set that is bounded when the process starts
/// (ranks, layers, experts, outcomes): every new combination is a series that is kept until the process ends, so never
/// a request's id, a client's address or an error's text. Nothing here counts them; it is the caller's promise.
using Labels = std::map<std::string, std::string>;

/// Handles are cheap to copy and live as long as their registry. All calls are safe from any thread; none allocates.
/// A counter and a gauge are one atomic; a histogram takes a mutex of its own for a few dozen nanoseconds, which only a
/// scrape or another observer of the same histogram can hold.
class Counter {
 public:
  /// A negative amount is ignored.
  void Add(double amount = 1) const;
  double value() const;

 private:
  friend class MetricsRegistry;
  explicit Counter(void* metric) : metric_(metric) {}
  void* metric_;
};

class Gauge {
 public:
  void Set(double value) const;
  void Add(double amount) const;
  double value() const;

 private:
  friend class MetricsRegistry;
  explicit Gauge(void* metric) : metric_(metric) {}
  void* metric_;
};

class Histogram {
 public:
  /// Counts `value` in the first bucket whose upper bound is at least `value`.
  void Observe(double value) const;

 private:
  friend class MetricsRegistry;
  friend class HistogramBatch;
  explicit Histogram(void* metric) : metric_(metric) {}
  void* metric_;
};

/// Values of one thread, brought to a histogram all at once: one lock a batch instead of one a value.
class HistogramBatch {
 public:
  /// `buckets`: those of the histogram.
  HistogramBatch(Histogram histogram, std::span<const double> buckets);
  void Add(double value);
  /// Observes what was added since the last time.
  void Flush();
  /// Forgets it.
  void Discard();

 private:
  Histogram histogram_;
  std::vector<double> bounds_;
  std::vector<double> counts_;  // by bucket, +Inf last
  double sum_ = 0;
  bool empty_ = true;
};

/// One set of metrics of one process; exports process_* (resident and virtual memory, CPU seconds, open files, start
/// time, threads) too, unless asked not to. Asking for the same name and labels again gives the same metric. Names,
/// label names and buckets are the code's own: a malformed one, or one name for two types, is a broken invariant.
class MetricsRegistry {
 public:
  enum class Process { kExport, kLeaveOut };

  explicit MetricsRegistry(Process process = Process::kExport);
  ~MetricsRegistry();
  MetricsRegistry(const MetricsRegistry&) = delete;
  MetricsRegistry& operator=(const MetricsRegistry&) = delete;

  Counter AddCounter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge AddGauge(const std::string& name, const std::string& help, const Labels& labels = {});
  /// `buckets`: strictly ascending upper bounds; +Inf is added.
  Histogram AddHistogram(const std::string& name, const std::string& help, std::span<const double> buckets,
                         const Labels& labels = {});

  /// The text exposition format.
  std::string Text() const;

 private:
  friend class MetricsServer;
  struct State;
  std::shared_ptr<State> state_;
};

/// Upper bounds first, first * factor, … (count of them). `first` > 0, `factor` > 1.
std::vector<double> ExponentialBuckets(double first, double factor, int count);

/// Serves registries over HTTP, each on a path of its own ("/metrics", "/metrics/experts"); any other path is 404.
/// Idle, its threads sleep. Beside a registry's own metrics a path shows the library's exposer_* ones about its
/// scrapes.
class MetricsServer {
 public:
  /// Listens on host:port, port 0 for any free one. UNAVAILABLE naming the address when it is taken.
  static Result<std::unique_ptr<MetricsServer>> Start(const std::string& host, int port);
  /// Returns when no scrape is under way any more.
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  /// Serves `registry` under `path` from now on; the registry must outlive the server.
  void Serve(const std::string& path, const MetricsRegistry& registry);

  /// "127.0.0.1:9400", the port really bound.
  const std::string& address() const { return address_; }

 private:
  MetricsServer();
  struct State;
  std::unique_ptr<State> state_;
  std::string address_;
};

}  // namespace moe
