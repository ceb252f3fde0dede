#include "model/families/family.h"

#include <algorithm>
#include <array>

namespace moe {

// One line a family; each is a function that returns its Family, defined in the file of that name.
#define MOE_FAMILIES(FAMILY) \
  FAMILY(LlamaFamily)        \
  FAMILY(MistralFamily)      \
  FAMILY(MixtralFamily)

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
