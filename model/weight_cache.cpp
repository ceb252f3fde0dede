#include "model/weight_cache.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/text.h"
#include "model/content_hash.h"

namespace moe {
namespace {

constexpr const char* kSuffix = ".moew";
constexpr std::size_t kMostReasons = 8;

void AddSizes(const std::vector<std::int64_t>& sizes, ContentHash& hash) {
  hash.AddNumber(sizes.size());
  for (const std::int64_t size : sizes) hash.AddNumber(static_cast<std::uint64_t>(size));
}

/// Everything that decides which of the checkpoint's values go where.
void AddSpec(const TensorSpec& spec, ContentHash& hash) {
  AddSizes(spec.shape, hash);
  hash.AddText(spec.name);
  AddSizes(spec.stored_shape, hash);
  hash.AddNumber(static_cast<std::uint64_t>(spec.slice.expert));
  hash.AddNumber(spec.slice.transposed ? 1 : 0);
  hash.AddNumber(static_cast<std::uint64_t>(spec.slice.first));
  hash.AddNumber(static_cast<std::uint64_t>(spec.slice.step));
  hash.AddNumber(static_cast<std::uint64_t>(spec.encoding));
}

}  // namespace

PackedShape MatrixRecipe::shape() const {
  MOE_CHECK(!parts.empty());
  PackedShape shape{.rows = 0, .cols = static_cast<std::size_t>(parts.front().shape.at(1))};
  for (const TensorSpec& part : parts) shape.rows += static_cast<std::size_t>(part.shape.at(0));
  return shape;
}

std::string WeightCacheReport::Summary() const {
  std::string text;
  const auto add = [&](const char* verb, std::uint64_t files, std::uint64_t bytes) {
    if (files > 0) text += Cat(text.empty() ? "" : ", ", verb, " ", files, " files, ", bytes, " bytes of weights");
  };
  add("read", files_read, bytes_read);
  add("wrote", files_written, bytes_written);
  return text.empty() ? text : Cat("weight cache ", folder, ": ", text);
}

std::vector<std::string> WeightCacheReport::Warnings() const {
  std::vector<std::string> lines;
  for (const Refused& of : refused) {
    lines.push_back(Cat("weight cache: refused ", of.first_file, ", which ", of.reason));
    if (of.files > 1) lines.back() += Cat("; and ", of.files - 1, " more");
  }
  if (!write_failure.empty()) lines.push_back(Cat("weight cache: cannot write ", write_failure));
  return lines;
}

WeightCache::WeightCache(std::filesystem::path folder, const Checkpoint& checkpoint)
    : folder_(std::move(folder)), checkpoint_(checkpoint.stamp()) {
  MOE_CHECK(!checkpoint.made_up(), "weights that are made up are not kept");
  report_.folder = folder_.string();
}

PackedFileKey WeightCache::KeyOf(std::span<const MatrixRecipe> recipes) const {
  MOE_CHECK(!recipes.empty());
  const WeightType type = recipes.front().type;
  ContentHash hash;
  hash.AddNumber(recipes.size());
  for (const MatrixRecipe& recipe : recipes) {
    MOE_CHECK(IsQuantized(recipe.type) && recipe.type == type, "a cached unit has one quantized type");
    hash.AddNumber(recipe.parts.size());
    for (const TensorSpec& part : recipe.parts) AddSpec(part, hash);
  }
  return {.checkpoint = checkpoint_, .recipe = hash.value(), .type = type};
}

std::filesystem::path WeightCache::PathOf(const std::string& unit, WeightType type) const {
  return folder_ / Name(type) / (unit + kSuffix);
}

std::vector<PackedMatrix> WeightCache::Read(const std::string& unit, std::span<const MatrixRecipe> recipes) {
  const PackedFileKey key = KeyOf(recipes);
  std::vector<PackedShape> shapes;
  for (const MatrixRecipe& recipe : recipes) shapes.push_back(recipe.shape());
  const std::filesystem::path path = PathOf(unit, key.type);
  Result<std::vector<PackedMatrix>> matrices = ReadPackedFile(path, key, shapes);
  const std::lock_guard lock(mutex_);
  if (matrices.ok()) {
    ++report_.files_read;
    for (const PackedMatrix& matrix : *matrices) report_.bytes_read += matrix.bytes();
    return *std::move(matrices);
  }
  if (matrices.status().code() != StatusCode::kNotFound) AddRefused(path, matrices.status().message());
  return {};
}

void WeightCache::AddRefused(const std::filesystem::path& path, const std::string& reason) {
  std::vector<WeightCacheReport::Refused>& all = report_.refused;
  auto same = std::ranges::find(all, reason, &WeightCacheReport::Refused::reason);
  if (same == all.end() && all.size() == kMostReasons) --same;
  if (same == all.end()) same = all.insert(same, {.reason = reason, .first_file = path.string()});
  ++same->files;
}

void WeightCache::Write(const std::string& unit, std::span<const MatrixRecipe> recipes,
                        std::span<const PackedMatrix* const> matrices) {
  {
    const std::lock_guard lock(mutex_);
    if (!report_.write_failure.empty()) return;
  }
  const PackedFileKey key = KeyOf(recipes);
  const std::filesystem::path path = PathOf(unit, key.type);
  const Result<bool> written = WritePackedFile(path, key, matrices);
  const std::lock_guard lock(mutex_);
  if (!written.ok()) {
    if (report_.write_failure.empty()) report_.write_failure = Cat(path.string(), ": ", written.status().message());
  } else if (*written) {
    ++report_.files_written;
    for (const PackedMatrix* matrix : matrices) report_.bytes_written += matrix->bytes();
  }
}

WeightCacheReport WeightCache::report() const {
  const std::lock_guard lock(mutex_);
  return report_;
}

}  // namespace moe
