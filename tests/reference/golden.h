// What an independent implementation computed: the cases of tests/goldens and tests/option_goldens, and the golden.json
// of the bundled models.
// Their READMEs say how the figures were made and how far a right implementation may be off.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace moe {

/// A tensor of a golden.safetensors; one of the two lists has its elements, row-major.
struct GoldenTensor {
  std::vector<std::int64_t> shape;
  std::vector<float> floats;       // of an F32
  std::vector<std::int32_t> ints;  // of an I32
};

struct GoldenPrompt {
  std::vector<std::uint32_t> ids;
  std::vector<std::uint32_t> argmax;  // the greedy choice after each token; empty where ids are an encoder's, and for
                                      // bundled models
  std::vector<std::uint32_t> greedy;  // the continuation; EOS does not end it
  std::map<int, std::vector<std::uint32_t>> dropped;  // encoders with a capacity: positions past it, by sparse layer
};

/// One folder of tests/goldens, or of tests/option_goldens, which say nothing of hidden states and parameters.
struct Golden {
  double logit_tolerance = 0;
  double hidden_tolerance = 0;
  std::uint64_t num_parameters = 0;  // a tied table once
  std::vector<GoldenPrompt> prompts;
  std::map<std::string, GoldenTensor> tensors;

  /// Throws when there is none of that name: the case is not what the test believes.
  const GoldenTensor& tensor(const std::string& name) const;
  bool has_tensor(const std::string& name) const { return tensors.contains(name); }
};

/// Throws when a file is not as the README says.
Golden ReadGolden(const std::filesystem::path& folder);

/// The golden.json of a bundled model.
struct BundledGolden {
  std::vector<GoldenPrompt> prompts;
  std::vector<std::uint32_t> logits_prompt;
  std::vector<float> logits;  // after logits_prompt, (vocab)
  double logit_tolerance = 0;
};
BundledGolden ReadBundledGolden(const std::filesystem::path& folder);

}  // namespace moe
