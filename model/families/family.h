// The seam behind which model types live: one Family each, found by the model_type of config.json. A new family is one
// file here and its line in family.cpp's list.
#pragma once

#include <span>
#include <string_view>

#include "model/config.h"
#include "model/families/key_reader.h"

namespace moe {

/// How one model_type's config.json becomes a ModelConfig. A configuration's keys are in three lists: those that
/// `parse` reads, the harmless ones (they do not change what inference computes), and the mathematical ones (they
/// would, and the family does not compute them: refused unless neutral). A key on none of them is ignored with one
/// warning.
struct Family {
  std::string_view model_type;
  std::string_view architecture;  // when config.json has no `architectures`
  /// Reads the keys and fills all of the config but what every family shares (ReadModelConfigFile). Failures go into
  /// `keys`.
  void (*parse)(KeyReader& keys, ModelConfig& config);
  std::span<const std::string_view> harmless = {};       // beside HarmlessKeys()
  std::span<const MathematicalKey> mathematical = {};    // before MathematicalKeys()
  WeightType absent_dtype = WeightType::kF32;            // without dtype and torch_dtype
  StoredEncoding encoding = StoredEncoding::kFp8Blocks;  // that quantization_config may ask for; kPlain: none
  bool servable = true;  // false: its parameters can be counted, its forward pass is not implemented
  /// When not empty, the text model has a whole configuration of its own under this key, of the other model type.
  /// `parse` comes after it and adds what the outer form changes.
  std::string_view text_key = {};
  std::string_view text_model_type = {};
};

/// Null when no family has this model_type.
const Family* FindFamily(std::string_view model_type);

/// All families, in the order in which messages name them.
std::span<const Family* const> Families();

}  // namespace moe
