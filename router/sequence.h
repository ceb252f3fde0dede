// One prompt and its continuation: what was asked, what is known so far, what has come out.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/ids.h"
#include "core/status.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/sampler.h"

namespace moe {

enum class SequenceKind : std::uint8_t { kGenerate, kScore };
enum class ScoreLogits : std::uint8_t { kNone, kLast, kAll };

/// A checked request (router/request.h makes it from a message).
struct SequenceRequest {
  SequenceKind kind = SequenceKind::kGenerate;
  std::uint32_t index = 0;            // in its own request
  std::vector<std::uint32_t> source;  // what an encoder reads; empty for decoder-only models
  std::vector<std::uint32_t> prompt;  // the decoder's tokens: the request's, or an encoder–decoder's start token
  std::uint32_t max_new_tokens = 0;   // 0 when scoring
  SamplingParams sampling;
  std::vector<std::uint32_t> stop_token_ids;  // sorted; the model's own among them unless ignored
  std::uint32_t num_logprobs = 0;
  bool return_routing = false;
  ScoreLogits score_logits = ScoreLogits::kNone;

  /// Positions that are computed and so need room in the KV cache: all but the last generated token.
  std::size_t kv_tokens() const { return prompt.size() + (max_new_tokens > 0 ? max_new_tokens - 1 : 0); }
  KvDemand kv_demand() const { return {.tokens = kv_tokens(), .source = source.size()}; }
  /// Tokens that the client sent.
  std::size_t sent_tokens() const { return source.empty() ? prompt.size() : source.size(); }
};

enum class FinishKind : std::uint8_t { kStop, kLength, kCancelled, kFailed };

struct SequenceResult {
  FinishKind finish = FinishKind::kFailed;
  Status status;  // why, when kFailed
  double queue_seconds = 0;
  double time_to_first_token_seconds = 0;
  double total_seconds = 0;
  std::uint64_t expert_rows = 0;     // (token, expert) pairs computed, all layers
  std::uint64_t unique_experts = 0;  // distinct (layer, expert) pairs among them
};

/// Told by the engine thread that an output has grown or finished; must not block or allocate.
class OutputListener {
 public:
  virtual ~OutputListener() = default;
  virtual void OnOutput() = 0;
};

/// Where the routing of each sparse layer lies: the encoder's layers have the source's positions, the decoder's those
/// of its tokens. In (position, expert) pairs.
struct RoutingShape {
  std::size_t encoder_layers = 0;
  std::size_t decoder_layers = 0;
  std::size_t experts_per_token = 0;
  std::size_t source = 0;
  std::size_t tokens = 0;

  std::size_t positions(std::size_t sparse_index) const { return sparse_index < encoder_layers ? source : tokens; }
  std::size_t begin(std::size_t sparse_index) const {
    const std::size_t encoder = std::min(sparse_index, encoder_layers);
    return (encoder * source + (sparse_index - encoder) * tokens) * experts_per_token;
  }
  std::size_t size() const { return begin(encoder_layers + decoder_layers); }
};

/// What comes out of a sequence. All memory is there before the sequence is queued. The engine thread writes and then
/// publishes a count (release); a service thread reads what is published (acquire).
class SequenceOutput {
 public:
  SequenceOutput(const SequenceRequest& request, const ModelConfig& config);

  /// About what an output of `request` takes, in bytes.
  static std::uint64_t Bytes(const SequenceRequest& request, const ModelConfig& config);

  // Written by the engine thread, readable up to the published counts.
  std::vector<std::uint32_t> token_ids;      // (max_new_tokens)
  std::vector<float> token_logprobs;         // generated: (max_new_tokens) when asked for; scored: (prompt − 1)
  std::vector<std::uint32_t> top_token_ids;  // (max_new_tokens, num_logprobs)
  std::vector<float> top_logprobs;           // (max_new_tokens, num_logprobs)
  std::vector<float> logits;                 // (1 or prompt, vocab) when scoring asks for them
  RoutingShape routing_shape;                // empty unless asked for
  std::vector<std::int32_t> routing_ids;     // as routing_shape says
  std::vector<float> routing_weights;
  SequenceResult result;  // valid once finished()

  std::size_t tokens() const { return tokens_.load(std::memory_order_acquire); }  // pairs with PublishTokens
  std::size_t routed() const { return routed_.load(std::memory_order_acquire); }  // pairs with PublishRouted
  bool finished() const { return finished_.load(std::memory_order_acquire); }     // pairs with Finish
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }   // a hint, nothing is read through it

  void PublishTokens(std::size_t count) { tokens_.store(count, std::memory_order_release); }
  void PublishRouted(std::size_t count) { routed_.store(count, std::memory_order_release); }
  void Finish(SequenceResult value) {
    result = std::move(value);
    finished_.store(true, std::memory_order_release);
  }
  /// By any thread: the client does not want it any more.
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }

 private:
  std::atomic<std::size_t> tokens_{0};
  std::atomic<std::size_t> routed_{0};  // decoder positions whose routing is there; then the encoder's is too
  std::atomic<bool> finished_{false};
  std::atomic<bool> cancelled_{false};
};

/// The engine's side of a sequence. Made whole before it is queued, so that a step allocates nothing.
struct Sequence {
  Sequence(SequenceRequest request, std::shared_ptr<SequenceOutput> output, std::shared_ptr<OutputListener> listener,
           const ModelConfig& config);

  SequenceRequest request;
  std::shared_ptr<SequenceOutput> output;
  std::shared_ptr<OutputListener> listener;

  std::vector<std::uint32_t> tokens;    // prompt and what was generated
  KvPages kv;                           // its pages of the KV cache
  bool encoded = false;                 // the encoder has run, or there is nothing to encode
  std::size_t computed = 0;             // positions in the cache
  std::unique_ptr<TokenCounts> counts;  // when penalties need it
  // Of the step that is computed now, which may fail and be run again: the second time marks the same experts.
  std::vector<bool> experts_used;  // (sparse layers, experts)
  std::size_t num_experts_used = 0;
  std::uint64_t step_expert_rows = 0;
  SequenceResult result;   // grows while it runs, with every step that succeeds
  Status failure;          // why it cannot go on, once that is so; then the next retirement ends it
  std::uint64_t turn = 0;  // the scheduler's: when it was admitted or last had a place in a step

  TimePoint arrived;
  TimePoint admitted;
  TimePoint first_token;
  TimePoint last_token;

  std::size_t generated() const { return tokens.size() - request.prompt.size(); }
  std::size_t remaining() const { return tokens.size() - computed; }  // positions known and not computed
  bool prefilling() const { return computed + 1 < tokens.size() || generated() == 0; }
};

}  // namespace moe
