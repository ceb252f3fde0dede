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

/// What one step computed, of all its rows; every list is row-major.
struct StepTrace {
  struct Routes {
    std::vector<std::int32_t> ids;  // (rows, experts_per_token)
    std::vector<float> weights;     // (rows, experts_per_token)
  };

  std::vector<float> logits;               // (rows, vocab)
  std::vector<float> final_norm;           // (rows, hidden)
  std::vector<std::vector<float>> hidden;  // after the embedding and after each layer: (rows, hidden)
  std::vector<Routes> routes;              // of each layer; empty for a dense one
};

class LocalModel {
 public:
  struct Options {
    const Kernels* kernels = &SimdKernels();
    int threads = 1;
    std::size_t kv_pages = 64;
    std::size_t max_step_tokens = 64;
  };

  /// The tokens of one sequence that are in the cache, as pages. Belongs to one model.
  struct Sequence {
    std::vector<PageId> pages;
    std::size_t length = 0;
  };

  /// New tokens of a sequence.
  struct Part {
    Sequence* sequence = nullptr;
    std::span<const std::uint32_t> tokens;
  };

  /// Loads the checkpoint as it is stored; throws when it cannot be.
  LocalModel(const std::filesystem::path& folder, const Options& options);

  const ModelConfig& config() const { return config_; }

  /// One step over the parts' tokens, one part after the other; different sequences.
  StepTrace Step(std::span<const Part> parts);
  StepTrace Step(Sequence& sequence, std::span<const std::uint32_t> tokens) {
    const Part part{&sequence, tokens};
    return Step({&part, 1});
  }
  /// The tokens of a new sequence in steps of `chunk`, joined as if it had been one.
  StepTrace Prefill(Sequence& sequence, std::span<const std::uint32_t> tokens, std::size_t chunk);
  /// The greedy continuation of a new sequence, `count` tokens.
  std::vector<std::uint32_t> Greedy(std::span<const std::uint32_t> prompt, std::size_t count);

  /// Gives the pages back.
  void Release(Sequence& sequence);

 private:
  void Layer(std::size_t layer, std::size_t rows, StepTrace& trace);
  void AddExperts(std::size_t layer, MatrixView<const float> in, const StepTrace::Routes& routes);

  const Kernels& kernels_;
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
