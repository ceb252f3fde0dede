// What a Generate call has to send, event by event.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/config.h"
#include "router/inference_service.h"
#include "router/sequence.h"

namespace moe::v1 {
class GenerateEvent;
}  // namespace moe::v1

namespace moe {

/// Sequences take turns; the last event of each has its finish and everything before it. Outputs may grow and finish
/// at any time, in another thread; the object itself belongs to one thread at a time.
class GenerateEvents {
 public:
  struct Options {
    const InferenceSetup& setup;
    const ModelConfig& config;
    std::uint32_t num_logprobs = 0;
    bool routing = false;
  };
  explicit GenerateEvents(Options options) : options_(options) {}

  /// The next sequence of the request. `prompt_tokens` are those that the client sent.
  void Add(std::shared_ptr<const SequenceOutput> output, std::size_t prompt_tokens);

  /// Fills `event` with what one sequence has that was not in its events before; false when none has anything.
  bool Next(v1::GenerateEvent& event);

  /// Whether Next has given the finish of every sequence. That it had nothing and that all outputs are finished does
  /// not say so: one may finish in between.
  bool complete() const;

 private:
  struct Sent {
    std::shared_ptr<const SequenceOutput> output;
    std::size_t prompt_tokens = 0;
    std::size_t tokens = 0;
    std::size_t routed = 0;  // positions
    bool finish = false;
  };

  bool Fill(Sent& sent, v1::GenerateEvent& event) const;

  const Options options_;
  std::vector<Sent> sequences_;
  std::size_t turn_ = 0;  // whose event comes first next time
};

}  // namespace moe
