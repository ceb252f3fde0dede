// Outputs of sequences as messages of moe.v1.Inference.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/config.h"
#include "router/inference_service.h"
#include "router/sequence.h"

namespace google::protobuf {
template <typename T>
class RepeatedPtrField;
}  // namespace google::protobuf

namespace moe::v1 {
class Finish;
class GenerateEvent;
class LayerRouting;
class ModelDescription;
class Parameters;
class SequenceScore;
}  // namespace moe::v1

namespace moe {

struct TokenRange {
  std::size_t begin = 0;
  std::size_t end = 0;
  std::uint32_t num_logprobs = 0;
};
void WriteTokens(const SequenceOutput& output, TokenRange range, v1::GenerateEvent& event);

struct PositionRange {
  std::size_t begin = 0;
  std::size_t end = 0;
};
/// Appends one LayerRouting per sparse layer; nothing for an empty range. All of an encoder's routing comes with the
/// decoder's first position.
void WriteRouting(const SequenceOutput& output, const ModelConfig& config, PositionRange range,
                  google::protobuf::RepeatedPtrField<v1::LayerRouting>& routing);

struct FinishCounts {
  std::size_t prompt_tokens = 0;
  std::size_t generated_tokens = 0;
  const ParameterCount& parameters;
  bool encoder = false;
};
void WriteFinish(const SequenceResult& result, FinishCounts counts, v1::Finish& finish);

void WriteScore(const SequenceOutput& output, v1::SequenceScore& score);
void WriteModel(const InferenceSetup& setup, const ModelConfig& config, v1::ModelDescription& model);
void WriteParameters(const ParameterCount& count, v1::Parameters& parameters);

}  // namespace moe
