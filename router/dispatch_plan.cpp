#include "router/dispatch_plan.h"

#include <algorithm>

#include "core/check.h"

namespace moe {

DispatchPlan::DispatchPlan(Shape shape)
    : shape_(shape),
      parts_(static_cast<std::size_t>(shape.workers)),
      sources_(shape.max_tokens * shape.experts_per_token),
      expert_tokens_(shape.num_experts),
      part_tokens_(shape.num_experts),
      served_(shape.max_tokens),
      chosen_(shape.experts_per_token),
      choice_(shape.num_experts, shape.workers) {
  for (Part& part : parts_) {
    part.tokens.reserve(shape.max_tokens);
    part.pairs.reserve(shape.max_tokens * shape.experts_per_token);
  }
  unserved_.reserve(shape.max_tokens);
  several_.reserve(shape.experts_per_token);
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

void DispatchPlan::Count(const ReplicaTable& replicas, const Tokens& tokens) {
  std::ranges::fill(part_tokens_, 0);
  for (std::size_t token = 0; token < tokens.ids.rows(); ++token) {
    const bool served = Serves(replicas, tokens, token);
    served_[token] = served ? 1 : 0;
    if (!served) continue;
    for (std::size_t j = 0; j < tokens.ids.cols(); ++j)
      if (tokens.weights(token, j) != 0) ++part_tokens_[static_cast<std::size_t>(tokens.ids(token, j))];
  }
  for (std::size_t expert = 0; expert < expert_tokens_.size(); ++expert) expert_tokens_[expert] += part_tokens_[expert];
}

void DispatchPlan::Choose(const ReplicaTable& replicas, const Tokens& tokens, std::size_t token) {
  choice_.BeginToken();
  several_.clear();
  // First where it has to go, then where it may.
  for (std::size_t j = 0; j < tokens.ids.cols(); ++j) {
    if (tokens.weights(token, j) == 0) continue;
    const auto expert = static_cast<std::size_t>(tokens.ids(token, j));
    const std::span<const ReplicaSlot> slots = replicas.replicas(tokens.sparse_index, expert);
    if (slots.size() > 1) {
      several_.push_back({j, expert, slots});
      continue;
    }
    chosen_[j] = slots[0];
    choice_.GoesTo(slots[0].worker);
  }
  for (const auto& [j, expert, slots] : several_) {
    chosen_[j] = choice_.Take(expert, slots);
    choice_.GoesTo(chosen_[j].worker);
  }
}

void DispatchPlan::Build(const ReplicaTable& replicas, const Tokens& tokens) {
  const auto& [sparse_index, first_token, ids, weights, left_out] = tokens;
  MOE_CHECK(first_token + ids.rows() <= shape_.max_tokens && ids.cols() == shape_.experts_per_token);
  for (Part& part : parts_) {
    part.tokens.clear();
    part.pairs.clear();
  }
  unserved_.clear();
  if (first_token == 0) {
    std::ranges::fill(expert_tokens_, 0);
    choice_.BeginLayer();
  }
  Count(replicas, tokens);
  choice_.Deal(replicas, sparse_index, part_tokens_);
  for (std::size_t token = 0; token < ids.rows(); ++token) {
    const std::span<Source> sources = std::span(sources_).subspan((first_token + token) * ids.cols(), ids.cols());
    if (served_[token] == 0) {
      std::ranges::fill(sources, Source{.worker = kNowhere});
      continue;
    }
    Choose(replicas, tokens, token);
    for (std::size_t j = 0; j < ids.cols(); ++j) {
      if (weights(token, j) == 0) continue;
      Part& part = parts_[chosen_[j].worker.index()];
      if (part.tokens.empty() || part.tokens.back() != token) part.tokens.push_back(static_cast<std::uint32_t>(token));
      sources[j] = {static_cast<std::uint32_t>(chosen_[j].worker.value()),
                    static_cast<std::uint32_t>(part.pairs.size())};
      part.pairs.push_back({.row = static_cast<std::uint32_t>(part.tokens.size() - 1),
                            .slot = chosen_[j].slot,
                            .weight = weights(token, j)});
    }
  }
}

}  // namespace moe
