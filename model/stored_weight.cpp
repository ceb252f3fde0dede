#include "model/stored_weight.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>

#include "core/check.h"

namespace moe {
namespace {

constexpr const char* kFp8Dtype = "F8_E4M3";
constexpr const char* kBytesDtype = "U8";

std::optional<WeightType> PlainType(std::string_view dtype) {
  if (dtype == "F32") return WeightType::kF32;
  if (dtype == "BF16") return WeightType::kBf16;
  if (dtype == "F16") return WeightType::kF16;
  return std::nullopt;
}

/// That a tensor is there with this shape.
Result<const TensorInfo*> FindShaped(const Checkpoint& checkpoint, const std::string& name,
                                     const std::vector<std::int64_t>& shape) {
  MOE_ASSIGN_OR_RETURN(const TensorInfo* info, checkpoint.Find(name));
  if (info->shape == shape) return info;
  return InvalidArgument(checkpoint.file_name(*info), ": tensor ", name, " has shape ", ShapeText(info->shape),
                         ", but config.json describes ", ShapeText(shape));
}

Status CheckDtype(const Checkpoint& checkpoint, const std::string& name, const TensorInfo& info,
                  std::string_view dtype) {
  if (info.dtype == dtype) return Status::Ok();
  return InvalidArgument(checkpoint.file_name(info), ": tensor ", name, " has dtype ", info.dtype, ", not ", dtype);
}

Result<StoredForm> CheckMxfp4(const Checkpoint& checkpoint, const TensorSpec& spec) {
  const std::string blocks = BlocksName(spec.name);
  const std::string scales = ScalesName(spec.name, spec.encoding);
  if (spec.shape[1] % kMxBlock != 0) {
    return InvalidArgument("tensor ", blocks, " has ", spec.shape[1], " inputs, which blocks of ", kMxBlock,
                           " do not divide");
  }
  MOE_ASSIGN_OR_RETURN(const TensorInfo* values, FindShaped(checkpoint, blocks, BlocksShape(spec)));
  MOE_RETURN_IF_ERROR(CheckDtype(checkpoint, blocks, *values, kBytesDtype));
  MOE_ASSIGN_OR_RETURN(const TensorInfo* exponents, FindShaped(checkpoint, scales, ScalesShape(spec)));
  MOE_RETURN_IF_ERROR(CheckDtype(checkpoint, scales, *exponents, kBytesDtype));
  // Two values a byte; every product of an e2m1 and a power of two is a bf16.
  return StoredForm{.encoding = spec.encoding,
                    .tensors = {blocks, scales},
                    .weights = values->elements() * 2,
                    .exact_type = WeightType::kBf16};
}

Result<StoredForm> CheckFp8(const Checkpoint& checkpoint, const TensorSpec& spec, const TensorInfo& values) {
  const std::string scales = ScalesName(spec.name, spec.encoding);
  MOE_ASSIGN_OR_RETURN(const TensorInfo* info, FindShaped(checkpoint, scales, ScalesShape(spec)));
  MOE_RETURN_IF_ERROR(CheckDtype(checkpoint, scales, *info, "F32"));
  return StoredForm{.encoding = spec.encoding,
                    .tensors = {spec.name, scales},
                    .weights = values.elements(),
                    .exact_type = WeightType::kF32};
}

bool IsFp8(const TensorSpec& spec, const TensorInfo& info) {
  return spec.encoding == StoredEncoding::kFp8Blocks && info.dtype == kFp8Dtype;
}

bool IsMxfp4(const Checkpoint& checkpoint, const TensorSpec& spec) {
  // A model that was loaded, dequantised and saved again has plain tensors under the same config.
  return spec.encoding == StoredEncoding::kMxfp4 && !checkpoint.tensors().contains(spec.name);
}

template <typename T>
T LoadAs(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

float LoadElement(const std::byte* data, WeightType type, std::size_t index) {
  switch (type) {
    case WeightType::kF32: return LoadAs<float>(data + 4 * index);
    case WeightType::kBf16: return Bf16ToF32(LoadAs<std::uint16_t>(data + 2 * index));
    case WeightType::kF16: return F16ToF32(LoadAs<std::uint16_t>(data + 2 * index));
    case WeightType::kInt8:
    case WeightType::kInt4: break;
  }
  MOE_CHECK(false, "unknown weight type");
  return 0;
}

/// All 256 values of e4m3 (OCP 8-bit floating point specification: bias 7, no infinities, one NaN a sign).
std::array<float, 256> MakeFp8Values() {
  std::array<float, 256> values{};
  for (int bits = 0; bits < 256; ++bits) {
    const int exponent = (bits >> 3) & 0xf;
    const int fraction = bits & 7;
    float value = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9)
                                : std::ldexp(static_cast<float>(8 + fraction), exponent - 10);
    if (exponent == 0xf && fraction == 7) value = std::numeric_limits<float>::quiet_NaN();
    values[static_cast<std::size_t>(bits)] = (bits & 0x80) != 0 ? -value : value;
  }
  return values;
}

/// e2m1, by its four bits.
constexpr std::array<float, 16> kFp4Values = {0,     0.5f,  1,     1.5f,  2,     3,     4,     6,
                                              -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

/// e8m0: 2^(bits − 127); all ones is NaN.
float E8m0(std::uint8_t bits) {
  return bits == 0xff ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, static_cast<int>(bits) - 127);
}

}  // namespace

Result<StoredForm> CheckStored(const Checkpoint& checkpoint, const TensorSpec& spec) {
  if (IsMxfp4(checkpoint, spec)) return CheckMxfp4(checkpoint, spec);
  MOE_ASSIGN_OR_RETURN(const TensorInfo* info, FindShaped(checkpoint, spec.name, spec.stored_shape));
  if (IsFp8(spec, *info)) return CheckFp8(checkpoint, spec, *info);
  const auto type = PlainType(info->dtype);
  if (!type.has_value()) {
    return InvalidArgument(checkpoint.file_name(*info), ": tensor ", spec.name, " has dtype ", info->dtype,
                           ", not F32, BF16 or F16");
  }
  return StoredForm{.tensors = {spec.name}, .weights = info->elements(), .exact_type = *type};
}

Result<std::vector<float>> ReadVector(const Checkpoint& checkpoint, const TensorSpec& spec) {
  MOE_CHECK(spec.shape.size() == 1);
  std::vector<float> out(static_cast<std::size_t>(spec.shape[0]));
  if (checkpoint.made_up()) {
    RandomWeight(spec).ReadRow(0, out);
    return out;
  }
  MOE_ASSIGN_OR_RETURN(const StoredForm form, CheckStored(checkpoint, spec));
  MOE_ASSIGN_OR_RETURN(const MappedTensor values, checkpoint.Map(spec.name, spec.slice.expert));
  const auto first = static_cast<std::size_t>(spec.slice.first);
  const auto step = static_cast<std::size_t>(spec.slice.step);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = LoadElement(values.data(), form.exact_type, first + i * step);
  return out;
}

Result<StoredMatrix> StoredMatrix::Map(const Checkpoint& checkpoint, const TensorSpec& spec) {
  MOE_CHECK(spec.shape.size() == 2);
  StoredMatrix matrix;
  matrix.rows_ = static_cast<std::size_t>(spec.shape[0]);
  matrix.cols_ = static_cast<std::size_t>(spec.shape[1]);
  matrix.first_ = static_cast<std::size_t>(spec.slice.first);
  matrix.step_ = static_cast<std::size_t>(spec.slice.step);
  matrix.transposed_ = spec.slice.transposed;
  const std::size_t dims = spec.stored_shape.size();
  matrix.stored_rows_ = static_cast<std::size_t>(spec.stored_shape[matrix.transposed_ ? dims - 1 : dims - 2]);
  if (checkpoint.made_up()) {
    matrix.random_.emplace(spec);
    return matrix;
  }
  MOE_ASSIGN_OR_RETURN(const StoredForm form, CheckStored(checkpoint, spec));
  matrix.encoding_ = form.encoding;
  matrix.type_ = form.exact_type;
  MOE_ASSIGN_OR_RETURN(matrix.values_, checkpoint.Map(form.tensors[0], spec.slice.expert));
  if (form.tensors.size() > 1) {
    MOE_ASSIGN_OR_RETURN(matrix.scales_, checkpoint.Map(form.tensors[1], spec.slice.expert));
  }
  return matrix;
}

std::optional<WeightView> StoredMatrix::plain() const {
  if (random_ || encoding_ != StoredEncoding::kPlain || transposed_ || step_ != 1) return std::nullopt;
  const std::byte* data = values_.data() + first_ * cols_ * BytesPerWeight(type_);
  return WeightView{.type = type_, .data = data, .rows = rows_, .cols = cols_};
}

void StoredMatrix::ReadRows(std::size_t first, MatrixView<float> out) const {
  MOE_CHECK(first + out.rows() <= rows_ && out.cols() == cols_);
  if (random_) {
    for (std::size_t row = 0; row < out.rows(); ++row) random_->ReadRow(first + row, out.row(row));
    return;
  }
  switch (encoding_) {
    case StoredEncoding::kPlain: return ReadPlain(first, out);
    case StoredEncoding::kMxfp4: return ReadMxfp4(first, out);
    case StoredEncoding::kFp8Blocks: return ReadFp8(first, out);
  }
}

void StoredMatrix::ReadPlain(std::size_t first, MatrixView<float> out) const {
  for (std::size_t col = 0; col < cols_; ++col) {
    for (std::size_t row = 0; row < out.rows(); ++row) {
      const std::size_t stored = StoredRow(first + row);
      const std::size_t index = transposed_ ? col * stored_rows_ + stored : stored * cols_ + col;
      out(row, col) = LoadElement(values_.data(), type_, index);
    }
  }
}

void StoredMatrix::ReadMxfp4(std::size_t first, MatrixView<float> out) const {
  constexpr auto kBlock = static_cast<std::size_t>(kMxBlock);
  const std::size_t blocks = cols_ / kBlock;
  for (std::size_t row = 0; row < out.rows(); ++row) {
    const std::size_t stored = StoredRow(first + row);
    for (std::size_t block = 0; block < blocks; ++block) {
      const std::size_t at = stored * blocks + block;
      const float scale = E8m0(LoadAs<std::uint8_t>(scales_.data() + at));
      for (std::size_t i = 0; i < kBlock / 2; ++i) {
        const auto both = LoadAs<std::uint8_t>(values_.data() + at * (kBlock / 2) + i);
        out(row, block * kBlock + 2 * i) = kFp4Values[both & 0xf] * scale;
        out(row, block * kBlock + 2 * i + 1) = kFp4Values[both >> 4] * scale;
      }
    }
  }
}

void StoredMatrix::ReadFp8(std::size_t first, MatrixView<float> out) const {
  static const std::array<float, 256> kValues = MakeFp8Values();
  constexpr auto kBlock = static_cast<std::size_t>(kFp8Block);
  const std::size_t blocks = (cols_ + kBlock - 1) / kBlock;
  for (std::size_t row = 0; row < out.rows(); ++row) {
    const std::size_t stored = StoredRow(first + row);
    for (std::size_t col = 0; col < cols_; ++col) {
      const std::size_t scale = stored / kBlock * blocks + col / kBlock;
      out(row, col) = kValues[LoadAs<std::uint8_t>(values_.data() + stored * cols_ + col)] *
                      LoadElement(scales_.data(), WeightType::kF32, scale);
    }
  }
}

}  // namespace moe
