#include "model/families/family.h"

#include <algorithm>
#include <array>

namespace moe {

// One line a family; each is a function that returns its Family. The last four are only counted.
#define MOE_FAMILIES(FAMILY)       \
  FAMILY(LlamaFamily)              \
  FAMILY(MistralFamily)            \
  FAMILY(MixtralFamily)            \
  FAMILY(Qwen2MoeFamily)           \
  FAMILY(Qwen3MoeFamily)           \
  FAMILY(Qwen3Family)              \
  FAMILY(OlmoeFamily)              \
  FAMILY(DeepseekV2Family)         \
  FAMILY(DeepseekV3Family)         \
  FAMILY(GptOssFamily)             \
  FAMILY(Llama4Family)             \
  FAMILY(Llama4TextFamily)         \
  FAMILY(SwitchTransformersFamily) \
  FAMILY(Glm4MoeFamily)            \
  FAMILY(GraniteMoeFamily)         \
  FAMILY(Gpt2Family)               \
  FAMILY(GemmaFamily)              \
  FAMILY(Gemma3TextFamily)         \
  FAMILY(Phi3Family)

#define MOE_DECLARE(name) const Family& name();
MOE_FAMILIES(MOE_DECLARE)
#undef MOE_DECLARE

std::span<const Family* const> Families() {
#define MOE_LIST(name) &name(),
  static const std::array families = {MOE_FAMILIES(MOE_LIST)};
#undef MOE_LIST
  return families;
}

const Family* FindFamily(std::string_view model_type) {
  const auto families = Families();
  const auto it = std::ranges::find(families, model_type, &Family::model_type);
  return it == families.end() ? nullptr : *it;
}

}  // namespace moe
