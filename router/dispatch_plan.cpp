#include "router/dispatch_plan.h"

#include <algorithm>

#include "core/check.h"

namespace moe {

DispatchPlan::DispatchPlan(Shape shape)
    : shape_(shape),
      parts_(static_cast<std::size_t>(shape.workers)),
      sources_(shape.max_tokens * shape.experts_per_token),
      expert_tokens_(shape.num_experts) {
  for (Part& part : parts_) {
    part.tokens.reserve(shape.max_tokens);
    part.pairs.reserve(shape.max_tokens * shape.experts_per_token);
  }
  unserved_.reserve(shape.max_tokens);
}

bool DispatchPlan::Serves(const ReplicaTable& replicas, const Tokens& tokens, std::size_t token) {
  if (!tokens.left_out.empty() && tokens.left_out[token] != 0) return false;
  if (replicas.complete()) return true;
  for (std::size_t j = 0; j < tokens.ids.cols(); ++j) {
    const auto expert = static_cast<std::size_t>(tokens.ids(token, j));
    if (tokens.weights(token, j) == 0 || !replicas.replicas(tokens.sparse_index, expert).empty()) continue;
    unserved_.push_back({.token = tokens.first_token + token, .expert = expert});
    return false;
  }
  return true;
}

void DispatchPlan::Build(const ReplicaTable& replicas, const Tokens& tokens) {
  const auto& [sparse_index, first_token, ids, weights, left_out] = tokens;
  MOE_CHECK(first_token + ids.rows() <= shape_.max_tokens && ids.cols() == shape_.experts_per_token);
  for (Part& part : parts_) {
    part.tokens.clear();
    part.pairs.clear();
  }
  unserved_.clear();
  if (first_token == 0) std::fill(expert_tokens_.begin(), expert_tokens_.end(), 0);
  for (std::size_t token = 0; token < ids.rows(); ++token) {
    if (!Serves(replicas, tokens, token)) {
      const auto first = sources_.begin() + static_cast<std::ptrdiff_t>((first_token + token) * ids.cols());
      std::fill_n(first, ids.cols(), Source{.worker = kNowhere});
      continue;
    }
    for (std::size_t j = 0; j < ids.cols(); ++j) {
      if (weights(token, j) == 0) continue;
      const auto expert = static_cast<std::size_t>(ids(token, j));
      const std::span<const ReplicaSlot> choice = replicas.replicas(sparse_index, expert);
      const ReplicaSlot& slot = choice[expert_tokens_[expert]++ % choice.size()];
      Part& part = parts_[slot.worker.index()];
      if (part.tokens.empty() || part.tokens.back() != token) part.tokens.push_back(static_cast<std::uint32_t>(token));
      sources_[(first_token + token) * ids.cols() + j] = {static_cast<std::uint32_t>(slot.worker.value()),
                                                          static_cast<std::uint32_t>(part.pairs.size())};
      part.pairs.push_back(
          {.row = static_cast<std::uint32_t>(part.tokens.size() - 1), .slot = slot.slot, .weight = weights(token, j)});
    }
  }
}

}  // namespace moe
