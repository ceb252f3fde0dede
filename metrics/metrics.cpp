#include "metrics/metrics.h"

#include <CivetServer.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <iterator>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>

#include "core/check.h"
#include "metrics/process_figures.h"

namespace moe {
namespace {

// Reads /proc when scraped, and never else.
class ProcessCollectable : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> families;
    const auto gauge = [&](const char* name, const char* help, double value) {
      prometheus::ClientMetric metric;
      metric.gauge.value = value;
      families.push_back({name, help, prometheus::MetricType::Gauge, {metric}});
    };
    if (const std::optional<ProcessFigures> figures = ReadProcessFigures()) {
      prometheus::ClientMetric cpu;
      cpu.counter.value = figures->cpu_seconds;
      families.push_back({"process_cpu_seconds_total",
                          "User and system CPU time of all threads, in seconds.",
                          prometheus::MetricType::Counter,
                          {cpu}});
      gauge("process_resident_memory_bytes", "Memory in RAM, in bytes.", figures->resident_bytes);
      gauge("process_virtual_memory_bytes", "Address space, in bytes.", figures->virtual_bytes);
      gauge("process_threads", "Threads of the process.", figures->threads);
      gauge("process_start_time_seconds", "Start of the process, in seconds since the Unix epoch.",
            figures->start_unix_seconds);
    }
    if (const int open_files = CountOpenFiles(); open_files >= 0) {
      gauge("process_open_fds", "Open file descriptors.", open_files);
    }
    gauge("process_max_fds", "Limit on open file descriptors.", MaxOpenFiles());
    return families;
  }
};

}  // namespace

void Counter::Add(double amount) const { static_cast<prometheus::Counter*>(metric_)->Increment(amount); }
double Counter::value() const { return static_cast<prometheus::Counter*>(metric_)->Value(); }

void Gauge::Set(double value) const { static_cast<prometheus::Gauge*>(metric_)->Set(value); }
void Gauge::Add(double amount) const { static_cast<prometheus::Gauge*>(metric_)->Increment(amount); }
double Gauge::value() const { return static_cast<prometheus::Gauge*>(metric_)->Value(); }

void Histogram::Observe(double value) const { static_cast<prometheus::Histogram*>(metric_)->Observe(value); }

HistogramBatch::HistogramBatch(Histogram histogram, std::span<const double> buckets)
    : histogram_(histogram), bounds_(buckets.begin(), buckets.end()), counts_(buckets.size() + 1, 0) {}

void HistogramBatch::Add(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<std::size_t>(bucket)] += 1;
  sum_ += value;
  empty_ = false;
}

void HistogramBatch::Flush() {
  if (empty_) return;
  static_cast<prometheus::Histogram*>(histogram_.metric_)->ObserveMultiple(counts_, sum_);
  Discard();
}

void HistogramBatch::Discard() {
  std::fill(counts_.begin(), counts_.end(), 0);
  sum_ = 0;
  empty_ = true;
}

struct MetricsRegistry::State : prometheus::Collectable {
  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> families = registry.Collect();
    if (process == Process::kExport) {
      std::ranges::move(ProcessCollectable().Collect(), std::back_inserter(families));
    }
    return families;
  }

  // The library throws on malformed names; names are the code's own, so that is a broken invariant.
  template <typename T, typename... Arguments>
  void* Add(prometheus::detail::Builder<T> builder, const std::string& name, const std::string& help,
            const Labels& labels, const Arguments&... arguments) {
    std::string problem;
    try {
      return &builder.Name(name).Help(help).Register(registry).Add(labels, arguments...);
    } catch (const std::exception& error) {
      problem = Cat("metric ", name, ": ", error.what());
    }
    MOE_CHECK(false, problem);
    return nullptr;
  }

  prometheus::Registry registry;
  Process process = Process::kExport;
};

MetricsRegistry::MetricsRegistry(Process process) : state_(std::make_shared<State>()) { state_->process = process; }
MetricsRegistry::~MetricsRegistry() = default;

Counter MetricsRegistry::AddCounter(const std::string& name, const std::string& help, const Labels& labels) {
  return Counter(state_->Add(prometheus::BuildCounter(), name, help, labels));
}

Gauge MetricsRegistry::AddGauge(const std::string& name, const std::string& help, const Labels& labels) {
  return Gauge(state_->Add(prometheus::BuildGauge(), name, help, labels));
}

Histogram MetricsRegistry::AddHistogram(const std::string& name, const std::string& help,
                                        std::span<const double> buckets, const Labels& labels) {
  MOE_CHECK(std::ranges::is_sorted(buckets, std::less_equal<>()), Cat("metric ", name, ": buckets must ascend"));
  return Histogram(state_->Add(prometheus::BuildHistogram(), name, help, labels,
                               prometheus::Histogram::BucketBoundaries(buckets.begin(), buckets.end())));
}

std::string MetricsRegistry::Text() const { return prometheus::TextSerializer().Serialize(state_->Collect()); }

std::vector<double> ExponentialBuckets(double first, double factor, int count) {
  MOE_CHECK(first > 0 && factor > 1 && count > 0, "buckets must ascend from a positive bound");
  std::vector<double> bounds;
  for (double bound = first; static_cast<int>(bounds.size()) < count; bound *= factor) bounds.push_back(bound);
  return bounds;
}

namespace {

// Two, so that one client that connects and stays silent does not keep a Prometheus out.
constexpr int kServerThreads = 2;

// The HTTP library reports why it cannot listen to a callback, on the thread that starts it, before it throws.
thread_local std::string* start_complaint = nullptr;

int KeepComplaint(const mg_connection* /*connection*/, const char* message) {
  // The first says why; what follows only says that starting failed.
  if (start_complaint != nullptr && start_complaint->empty()) *start_complaint = message;
  return 1;  // handled: nothing goes to stderr
}

// The HTTP library's listening thread looks at its stop flag every 2 s, or when somebody connects: connects and hangs
// up until told to stop.
class Waker {
 public:
  explicit Waker(int port)
      : thread_([port](const std::stop_token& stop) {
          std::mutex mutex;
          std::condition_variable_any stopped;
          std::unique_lock lock(mutex);
          while (!stop.stop_requested()) {
            KnockAt(port);
            stopped.wait_for(lock, stop, std::chrono::milliseconds(5), [] { return false; });
          }
        }) {}

 private:
  static void KnockAt(int port) {
    const int socket_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (socket_fd < 0) return;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    // A refusal is fine: then the server listens on another interface, and stops within 2 s.
    (void)connect(socket_fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    close(socket_fd);
  }

  std::jthread thread_;
};

}  // namespace

struct MetricsServer::State {
  std::unique_ptr<prometheus::Exposer> exposer;
  int port = 0;
};

MetricsServer::MetricsServer() : state_(std::make_unique<State>()) {}

MetricsServer::~MetricsServer() {
  if (!state_->exposer) return;
  const Waker waker(state_->port);
  state_->exposer.reset();
}

Result<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& host, int port) {
  const std::string wanted = Cat(host, ":", port);
  if (host.empty() || port < 0 || port > 65535) {
    return InvalidArgument("metrics address \"", wanted, "\" is not HOST:PORT with a port from 0 to 65535");
  }
  std::unique_ptr<MetricsServer> server(new MetricsServer());
  std::string complaint;
  start_complaint = &complaint;
  try {
    CivetCallbacks callbacks;
    callbacks.log_message = KeepComplaint;
    server->state_->exposer = std::make_unique<prometheus::Exposer>(wanted, kServerThreads, &callbacks);
    server->state_->port = server->state_->exposer->GetListeningPorts().at(0);
  } catch (const std::exception& error) {
    if (complaint.empty()) complaint = error.what();
  }
  start_complaint = nullptr;
  if (server->state_->port == 0) {
    return Unavailable("cannot serve metrics on ", wanted, ": ", complaint);
  }
  server->address_ = Cat(host, ":", server->state_->port);
  return server;
}

void MetricsServer::Serve(const std::string& path, const MetricsRegistry& registry) {
  // "$" ends the library's pattern: without it "/metrics" would answer for "/metrics/experts" too when that is off.
  state_->exposer->RegisterCollectable(registry.state_, path + "$");
}

}  // namespace moe
