#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "model/json.h"

namespace moe {
namespace {

struct Dtype {
  std::string_view name;
  std::uint64_t bytes;
};

// The format's types of whole bytes; which of them a family can use is its own business.
constexpr std::array<Dtype, 17> kDtypes = {{{"BOOL", 1},
                                            {"U8", 1},
                                            {"I8", 1},
                                            {"F8_E5M2", 1},
                                            {"F8_E4M3", 1},
                                            {"F8_E8M0", 1},
                                            {"I16", 2},
                                            {"U16", 2},
                                            {"F16", 2},
                                            {"BF16", 2},
                                            {"I32", 4},
                                            {"U32", 4},
                                            {"F32", 4},
                                            {"C64", 8},
                                            {"F64", 8},
                                            {"I64", 8},
                                            {"U64", 8}}};

std::optional<std::uint64_t> BytesOf(std::string_view dtype) {
  const auto* const it = std::ranges::find(kDtypes, dtype, &Dtype::name);
  if (it == kDtypes.end()) return std::nullopt;
  return it->bytes;
}

std::string DtypeNames() {
  std::string names;
  for (const Dtype& dtype : kDtypes) names += Cat(names.empty() ? "" : ", ", dtype.name);
  return names;
}

/// a * b, or nothing when it does not fit.
std::optional<std::uint64_t> Product(std::uint64_t a, std::uint64_t b) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

Result<std::vector<std::int64_t>> ParseShape(const JsonValue* value) {
  const JsonValue::Array* dims = value == nullptr ? nullptr : value->AsArray();
  if (dims == nullptr) return InvalidArgument("has no shape that is a list");
  if (dims->size() > kMaxTensorDims) {
    return InvalidArgument("has ", dims->size(), " dimensions (at most ", kMaxTensorDims, ")");
  }
  std::vector<std::int64_t> shape;
  for (const JsonValue& dim : *dims) {
    const auto size = dim.AsInt();
    if (!size.has_value() || *size < 0) {
      return InvalidArgument("has shape ", value->Excerpt(), ", whose ", dim.Excerpt(),
                             " is not a whole number from 0 to ", std::numeric_limits<std::int64_t>::max());
    }
    shape.push_back(*size);
  }
  return shape;
}

Status CheckMembers(const JsonValue& entry) {
  const JsonValue::Object* members = entry.AsObject();
  if (members == nullptr) return InvalidArgument("is ", entry.Excerpt(), ", not an object");
  for (const JsonValue::Member& member : *members) {
    if (member.key != "dtype" && member.key != "shape" && member.key != "data_offsets") {
      return InvalidArgument("has the unknown key \"", Printable(member.key), "\" (dtype, shape, data_offsets)");
    }
  }
  return Status::Ok();
}

/// One entry of the header; offsets become absolute. The message goes on from "tensor NAME ".
Result<TensorInfo> ParseTensor(const JsonValue& entry, std::uint64_t data_begin, std::uint64_t data_bytes) {
  MOE_RETURN_IF_ERROR(CheckMembers(entry));
  const JsonValue* dtype = entry.Find("dtype");
  if (dtype == nullptr || dtype->AsString() == nullptr) return InvalidArgument("has no dtype");
  const auto element_bytes = BytesOf(*dtype->AsString());
  if (!element_bytes.has_value()) {
    return InvalidArgument("has the unknown dtype ", dtype->Excerpt(), " (", DtypeNames(), ")");
  }
  TensorInfo info{.dtype = *dtype->AsString()};
  MOE_ASSIGN_OR_RETURN(info.shape, ParseShape(entry.Find("shape")));

  std::optional<std::uint64_t> bytes = *element_bytes;
  for (const std::int64_t dim : info.shape) {
    if (bytes.has_value()) bytes = Product(*bytes, static_cast<std::uint64_t>(dim));
  }
  if (!bytes.has_value()) return InvalidArgument("has shape ", ShapeText(info.shape), ", whose size overflows 64 bits");

  const JsonValue* offsets = entry.Find("data_offsets");
  const JsonValue::Array* pair = offsets == nullptr ? nullptr : offsets->AsArray();
  if (pair == nullptr || pair->size() != 2) return InvalidArgument("has no data_offsets that are two numbers");
  const auto begin = (*pair)[0].AsUnsigned();
  const auto end = (*pair)[1].AsUnsigned();
  if (!begin.has_value() || !end.has_value()) {
    return InvalidArgument("has data_offsets ", offsets->Excerpt(), ", which are not two whole numbers from 0");
  }
  if (*begin > *end) return InvalidArgument("has data_offsets ", offsets->Excerpt(), ", which are reversed");
  if (*end > data_bytes) {
    return InvalidArgument("has data_offsets ", offsets->Excerpt(), ", past the end of the file's ", data_bytes,
                           " bytes of data (is it truncated?)");
  }
  if (*end - *begin != *bytes) {
    return InvalidArgument("of type ", info.dtype, " and shape ", ShapeText(info.shape), " needs ", *bytes,
                           " bytes, but its data_offsets ", offsets->Excerpt(), " hold ", *end - *begin);
  }
  info.offset = data_begin + *begin;
  info.bytes = *bytes;
  return info;
}

Status CheckMetadata(const JsonValue& metadata) {
  const JsonValue::Object* members = metadata.AsObject();
  if (members == nullptr) return InvalidArgument("__metadata__ is ", metadata.Excerpt(), ", not an object");
  for (const JsonValue::Member& member : *members) {
    if (member.value.AsString() == nullptr) {
      return InvalidArgument("__metadata__ entry \"", Printable(member.key), "\" is ", member.value.Excerpt(),
                             ", not a string");
    }
  }
  return Status::Ok();
}

/// The tensors must follow one another without a gap, from the first byte of data to the last.
Status CheckLayout(const std::map<std::string, TensorInfo>& tensors, std::uint64_t data_begin,
                   std::uint64_t file_bytes) {
  std::vector<const std::pair<const std::string, TensorInfo>*> order;
  order.reserve(tensors.size());
  for (const auto& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, {},
                    [](const auto* tensor) { return std::pair(tensor->second.offset, tensor->second.bytes); });
  std::uint64_t position = data_begin;
  std::string_view previous;
  for (const auto* tensor : order) {
    const auto& [name, info] = *tensor;
    if (info.offset < position)
      return InvalidArgument("tensor ", Printable(name), " overlaps tensor ", Printable(previous));
    if (info.offset > position) {
      return InvalidArgument("the ", info.offset - position, " bytes before tensor ", Printable(name),
                             " belong to no tensor");
    }
    position += info.bytes;
    previous = name;
  }
  if (position != file_bytes) {
    return InvalidArgument("the last ", file_bytes - position, " bytes of the file belong to no tensor");
  }
  return Status::Ok();
}

}  // namespace

std::uint64_t TensorInfo::elements() const {
  std::uint64_t count = 1;
  for (const std::int64_t dim : shape) count *= static_cast<std::uint64_t>(dim);
  return count;
}

std::string ShapeText(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += Cat(i == 0 ? "" : ", ", shape[i]);
  return text + ")";
}

Result<std::map<std::string, TensorInfo>> ParseSafetensorsHeader(std::string_view header, std::uint64_t file_bytes,
                                                                 std::size_t file) {
  const std::uint64_t data_begin = kSafetensorsPrefixBytes + header.size();
  MOE_CHECK(data_begin <= file_bytes);
  Result<JsonValue> root = ParseJson(header);
  if (!root.ok()) return root.status().WithContext("the header");
  const JsonValue::Object* entries = root->AsObject();
  if (entries == nullptr) return InvalidArgument("the header is ", root->Excerpt(), ", not a JSON object");

  std::map<std::string, TensorInfo> tensors;
  for (const JsonValue::Member& entry : *entries) {
    if (entry.key == "__metadata__") {
      MOE_RETURN_IF_ERROR(CheckMetadata(entry.value));
      continue;
    }
    Result<TensorInfo> info = ParseTensor(entry.value, data_begin, file_bytes - data_begin);
    if (!info.ok()) return InvalidArgument("tensor ", Printable(entry.key), " ", info.status().message());
    info->file = file;
    tensors.emplace(entry.key, *std::move(info));
  }
  MOE_RETURN_IF_ERROR(CheckLayout(tensors, data_begin, file_bytes));
  return tensors;
}

}  // namespace moe
