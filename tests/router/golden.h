// What an independent implementation gives for the models of tests/goldens (its README.md says how it was made).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace moe {

struct GoldenPrompt {
  std::vector<std::uint32_t> ids;
  std::vector<std::uint32_t> argmax;  // greedy choice at every position
  std::vector<std::uint32_t> greedy;  // 24 tokens, no stop
};

struct Golden {
  std::vector<GoldenPrompt> prompts;
  float logit_tolerance = 0;
  std::map<std::string, std::vector<float>> floats;       // of golden.safetensors, row-major
  std::map<std::string, std::vector<std::int32_t>> ints;  // router ids
};

/// `folder` below the source tree. A golden that cannot be read is a broken invariant.
Golden ReadGolden(const std::string& folder);

}  // namespace moe
