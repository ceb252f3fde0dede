// A whole model in one process with nothing between its parts: the decoder and its dense backend as a router has them,
// and the experts as plain matrix products, one row after the other. What a cluster must reproduce bit for bit.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/decoder.h"
#include "model/dense_backend.h"
#include "model/weights.h"

namespace moe {

/// What one step computed in one stack, of all its rows; every list is row-major.
struct StepTrace {
  struct Routes {
    std::vector<std::int32_t> ids;  // (rows, experts_per_token)
    std::vector<float> weights;     // (rows, experts_per_token)
  };

  std::vector<float> logits;               // (rows, vocab); none of an encoder
  std::vector<float> final_norm;           // (rows, hidden): after the stack's last norm
  std::vector<std::vector<float>> hidden;  // after the embedding and after each layer of the stack: (rows, hidden)
  std::vector<Routes> routes;              // of each layer of the stack; empty for a dense one
};

class LocalModel {
 public:
  struct Options {
    const Kernels* kernels = &SimdKernels();
    int threads = 1;
    std::size_t max_sequences = 16;   // that have not been released, at a time
    std::size_t max_positions = 128;  // of a sequence
    std::size_t max_step_tokens = 64;
    KvType kv_type = KvType::kF32;
  };

  /// The tokens of one sequence that are in the cache. Belongs to one model.
  struct Sequence {
    KvPages kv;
    std::size_t length = 0;  // of the decoder
    std::size_t source = 0;  // of the encoder
  };

  /// New tokens of a sequence.
  struct Part {
    Sequence* sequence = nullptr;
    std::span<const std::uint32_t> tokens;
  };

  /// Loads the checkpoint in the type that holds it exactly; throws when it cannot be.
  LocalModel(const std::filesystem::path& folder, const Options& options);

  const ModelConfig& config() const { return config_; }

  /// The encoder over the whole sources of new sequences, one part after the other.
  StepTrace Encode(std::span<const Part> sources);
  StepTrace Encode(Sequence& sequence, std::span<const std::uint32_t> source) {
    const Part part{&sequence, source};
    return Encode({&part, 1});
  }

  /// One step of the decoder over the parts' tokens, one part after the other; different sequences, which of an
  /// encoder–decoder model have been encoded.
  StepTrace Step(std::span<const Part> parts);
  StepTrace Step(Sequence& sequence, std::span<const std::uint32_t> tokens) {
    const Part part{&sequence, tokens};
    return Step({&part, 1});
  }
  /// The tokens of a sequence in steps of `chunk`, joined as if it had been one.
  StepTrace Prefill(Sequence& sequence, std::span<const std::uint32_t> tokens, std::size_t chunk);

  /// The greedy continuation of a new sequence: its tokens, and the logits that they were chosen from.
  struct Continuation {
    std::vector<std::uint32_t> tokens;
    std::vector<std::vector<float>> logits;  // of each token: (vocab)
  };
  /// After `prompt`, or of an encoder–decoder model about the source `prompt`.
  Continuation Continue(std::span<const std::uint32_t> prompt, std::size_t count);
  std::vector<std::uint32_t> Greedy(std::span<const std::uint32_t> prompt, std::size_t count) {
    return Continue(prompt, count).tokens;
  }

  /// Gives the pages back.
  void Release(Sequence& sequence);

 private:
  void Reserve(const KvDemand& demand, Sequence& sequence);
  StepTrace RunStack(const StackSpec& stack, const StepBatch& batch);
  void Layer(std::size_t layer, std::size_t rows, StepTrace& trace);
  void AddExperts(std::size_t layer, MatrixView<const float> in, const StepTrace::Routes& routes);
  /// out = expert(in) of one row.
  void RunExpert(std::size_t layer, std::size_t expert, std::span<const float> in, std::span<float> out);

  const Kernels& kernels_;
  const Options options_;
  ThreadPool pool_;
  ModelConfig config_;
  std::unique_ptr<DenseBackend> backend_;
  std::optional<Decoder> decoder_;
  std::vector<std::vector<MlpWeights>> experts_;  // by layer
  Tensor final_norm_;                             // (max_step_tokens, hidden)
};

/// The index of the largest, the first of equals.
std::uint32_t ArgMax(std::span<const float> values);

}  // namespace moe
