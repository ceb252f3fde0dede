// How the fake device runs work: late, and in any order that CUDA allows.
//
// Work waits in its stream until something that CUDA guarantees forces it: waiting for an event or a stream, or asking
// for one. Then a seeded choice decides what runs: only what is needed, or whatever could run. So a missing event
// between two streams, or a host that does not wait, shows as a wrong result.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "device/device_api.h"

namespace moe {

/// A recorded point of a stream.
struct FakePoint {
  bool done = false;
  struct FakeCapture* capture = nullptr;  // recorded under this one, which may have ended
  std::size_t place = 0;                  // of the record in its capture
};

struct FakeWork {
  std::function<void()> run;               // may be empty: a wait or a record
  std::function<bool()> ready;             // may be empty; work of others (NCCL) that this one waits for
  std::vector<DeviceSpan> touches;         // device memory that `run` uses
  bool touches_all = false;                // any device memory (a kernel)
  std::shared_ptr<FakePoint> waits_for;    // run after this point
  std::shared_ptr<FakePoint> records;      // which has then happened
  std::vector<struct FakeCaptured> graph;  // launched graph: run after `run`
};

/// One piece of work of a graph; places count the graph's pieces in the order in which they were captured.
struct FakeCaptured {
  int stream = 0;
  FakeWork work;
  std::optional<std::size_t> after;  // place of the record that it waits for
};

struct FakeStream {
  int number = 0;
  bool destroyed = false;  // what is in it still runs
  std::deque<FakeWork> queue;
  struct FakeCapture* capture = nullptr;
};

struct FakeCapture {
  FakeStream* origin = nullptr;
  std::vector<FakeCaptured> pieces;
  std::string broken;  // why it cannot become a graph
};

/// Not thread-safe: the device's lock is held around every call.
class FakeScheduler {
 public:
  /// `execute` runs the closure of one piece of work with its memory accessible.
  FakeScheduler(std::uint64_t seed, std::function<void(FakeWork&)> execute)
      : random_(seed), execute_(std::move(execute)) {}

  FakeStream& AddStream();
  const std::vector<std::unique_ptr<FakeStream>>& streams() const { return streams_; }

  /// Something of the kind that time alone brings: none, one or a few pieces of work that could run.
  void RunSome();
  /// One step towards `point`; false when only somebody else's progress can help.
  bool RunTowards(const FakePoint& point);
  /// All that can run.
  void RunAll();

  /// Why the pieces are not a graph: work on another stream that the origin never waits for. Empty if they are.
  static std::string Unjoined(const FakeCapture& capture);

 private:
  static bool Ready(const FakeWork& work);
  bool RunFrontOfAny();
  bool RunNeeded(const FakePoint& point);
  void RunFront(FakeStream& stream);
  void RunGraph(std::vector<FakeCaptured>& pieces);

  std::mt19937_64 random_;
  std::function<void(FakeWork&)> execute_;
  std::vector<std::unique_ptr<FakeStream>> streams_;
};

}  // namespace moe
