// Invariant 1 (docs/architecture.md) as a check: whatever surrounds a sequence, its bits are those of the plainest run.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "router/sequence.h"
#include "tests/router/engine_harness.h"

namespace moe {

/// The cases in `folder` ("tests/goldens"), below the source tree, as they lie there: a new one needs no naming
/// anywhere.
std::vector<std::string> CasesIn(const std::string& folder);
/// All of tests/goldens and tests/option_goldens.
std::vector<std::string> GoldenCases();

/// The models of a suite; under the thread sanitizer, where all of them take ten minutes, the first: threads and
/// workers meet in all of them alike.
inline std::vector<std::string> ModelsToRun(std::vector<std::string> all) {
#ifdef __SANITIZE_THREAD__
  all.resize(1);
#endif
  return all;
}

/// "tests/goldens/mixtral" is "mixtral": what a test about it may be called.
std::string CaseName(const std::string& golden);

/// All that a client can ask for, with lengths on both sides of a page of the cache (kPageTokens positions) and past
/// every window of the goldens.
std::vector<SequenceRequest> MixedRequests(const ModelConfig& config);
/// The longest source or prompt among them.
inline constexpr std::size_t kLongestMixed = 67;

/// MixedRequests, all at once with `options`, give the bits that each gives alone, in one chunk, with one worker and
/// one thread.
void ExpectPlainBits(const HarnessOptions& options);

}  // namespace moe
