#include "bench/engine/kernel_bench.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "bench/statistics.h"
#include "core/aligned_buffer.h"
#include "core/clock.h"
#include "core/function_ref.h"
#include "core/text.h"
#include "core/thread_pool.h"
#include "model/cpu_matmul.h"
#include "model/random_weight.h"

namespace moe {
namespace {

constexpr std::size_t kLeastPasses = 3;
constexpr std::size_t kCheckedRows = 5;      // an odd tile
constexpr std::size_t kCheckedOutputs = 48;  // whole panels, three of them
constexpr std::size_t kMostRows = 1 << 14;

bool Chosen(const KernelBenchOptions& options, const std::string& model) {
  return options.models.empty() || std::ranges::find(options.models, model) != options.models.end();
}

/// Numbers in ± 1, the same in every run.
void FillRandom(std::span<float> values, std::uint64_t seed) {
  const RandomWeight numbers({.part = ModelPart::kEmbedding, .shape = {1, 1}, .name = Cat("bench.", seed)});
  numbers.ReadRow(0, values);
  for (float& value : values) value *= 0.5f;
}

/// The larger; not a number is worse than any.
double Worse(double a, double b) { return std::isnan(a) || b <= a ? a : b; }

double Median(std::vector<double> values) { return Summarize(std::move(values))->median; }

/// Equal matrices at different places, enough of them that the last-level cache does not help: a step goes through the
/// weights of all layers before it comes back to the first.
class ColdWeights {
 public:
  ColdWeights(const MatrixShape& shape, WeightType type, std::size_t cold_bytes, ThreadPool& pool) {
    const std::size_t bytes = MatrixBytes(shape.outputs, shape.inputs, type);
    matrices_.resize(std::max<std::size_t>(1, (cold_bytes + bytes - 1) / bytes));
    pool.ParallelFor(matrices_.size(), [&](std::size_t i, int) {
      const RandomWeight weight(
          {.part = ModelPart::kExperts,
           .shape = {static_cast<std::int64_t>(shape.outputs), static_cast<std::int64_t>(shape.inputs)},
           .name = Cat(shape.model, ".", shape.matrix, ".", i)});
      matrices_[i] =
          PackedMatrix::Pack(shape.outputs, shape.inputs, type, [&](std::size_t first, MatrixView<float> rows) {
            for (std::size_t r = 0; r < rows.rows(); ++r) weight.ReadRow(first + r, rows.row(r));
          });
    });
  }
  const std::vector<PackedMatrix>& matrices() const { return matrices_; }

 private:
  std::vector<PackedMatrix> matrices_;
};

/// The largest difference from the reference as a share of what rounding allows: two sums of n products in fp32 differ
/// by at most n ulp of the sum of the products' magnitudes each (Higham 2002, section 3.1).
double MatMulError(const Kernels& kernels, const PackedMatrix& w) {
  AlignedBuffer<float> x_data(kCheckedRows * w.cols());
  FillRandom(x_data.span(), 1);
  const MatrixView<float> x(x_data.data(), kCheckedRows, w.cols());
  std::vector<float> magnitudes_data(x_data.span().begin(), x_data.span().end());
  std::vector<float> fast_data(kCheckedRows * w.rows()), slow_data(kCheckedRows * w.rows());
  const std::size_t panels = std::min(w.panels(), kCheckedOutputs / PackedMatrix::kPanelWidth);
  const MatrixView<float> fast(fast_data.data(), kCheckedRows, w.Outputs(0, panels));
  const MatrixView<float> slow(slow_data.data(), kCheckedRows, w.Outputs(0, panels));
  if (IsQuantized(w.type())) {
    QuantizedRows quantized(kCheckedRows, w.cols());
    quantized.Shape(kCheckedRows, w.cols(), w.type());
    for (std::size_t row = 0; row < kCheckedRows; ++row)
      kernels.QuantizeRow(x.row(row), GroupSize(w.type()), quantized.Groups(row, 0, w.cols()));
    kernels.MatMulPanels(quantized.view(), w, 0, panels, fast);
    ReferenceKernels().MatMulPanels(quantized.view(), w, 0, panels, slow);
  } else {
    kernels.MatMulPanels(x, w, 0, panels, fast);
    ReferenceKernels().MatMulPanels(x, w, 0, panels, slow);
  }
  // |x| ≤ 1 and |w| ≤ sqrt(3 / inputs), as they were made: the sum of magnitudes is at most sqrt(3 inputs).
  const double inputs = static_cast<double>(w.cols());
  const double allowed = inputs * std::numeric_limits<float>::epsilon() * std::sqrt(3 * inputs);
  double worst = 0;
  for (std::size_t row = 0; row < kCheckedRows; ++row)
    for (std::size_t col = 0; col < std::min(w.rows(), kCheckedOutputs); ++col)
      worst = Worse(worst, std::abs(static_cast<double>(fast(row, col)) - slow(row, col)) / allowed);
  return worst;
}

/// Keys and values of one sequence, in pages, and queries for some rows at its end.
struct AttentionCase {
  AttentionCase(const HeadsShape& heads, KvType kv_type, std::size_t length, std::size_t sequences)
      : shape(heads),
        type(kv_type),
        positions(length),
        pages((length + kPageTokens - 1) / kPageTokens),
        block_bytes(kPageTokens * heads.head_dim * BytesPerElement(kv_type)),
        cache(sequences * heads.kv_heads * pages * block_bytes * 2),
        queries(sequences * heads.heads * heads.head_dim),
        out(queries.size()) {
    FillRandom(queries.span(), 3);
    // Any order of random elements is as random.
    std::vector<float> block(kPageTokens * shape.head_dim);
    for (std::size_t at = 0; at < cache.size(); at += block_bytes) {
      FillRandom(block, 4 + at);
      StoreKvRows({block.data(), 1, block.size()}, type, cache.span().subspan(at, block_bytes));
    }
  }

  /// The task of one KV head of one sequence; the pointers are written to `key_pages` and `value_pages`.
  AttentionTask Task(std::size_t sequence, std::size_t kv_head, std::vector<const std::byte*>& key_pages,
                     std::vector<const std::byte*>& value_pages) {
    const std::size_t group = shape.heads / shape.kv_heads;
    for (std::size_t page = 0; page < pages; ++page) {
      // As KvCache lays them out: keys and values of a head side by side, page by page.
      const std::size_t block = ((sequence * pages + page) * shape.kv_heads + kv_head) * 2;
      key_pages[page] = cache.data() + block * block_bytes;
      value_pages[page] = cache.data() + (block + 1) * block_bytes;
    }
    const std::size_t at = (sequence * shape.heads + kv_head * group) * shape.head_dim;
    return {.queries = {queries.data() + at, group, shape.head_dim},
            .type = type,
            .key_pages = key_pages,
            .value_pages = value_pages,
            .value_stride = shape.head_dim,
            .begin = 0,
            .end = positions,
            .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.head_dim))),
            .out = {out.data() + at, group, shape.head_dim}};
  }

  const HeadsShape shape;
  const KvType type;
  const std::size_t positions;
  const std::size_t pages;
  const std::size_t block_bytes;
  AlignedBuffer<std::byte> cache;
  AlignedBuffer<float> queries;
  AlignedBuffer<float> out;
};

/// A weighted mean of values in ± 0.5: the weights carry the error of exp and of scores, each some n ulp.
double AttentionError(const Kernels& kernels, const HeadsShape& shape, KvType type, std::size_t positions) {
  AttentionCase fast(shape, type, positions, 1), slow(shape, type, positions, 1);
  std::vector<const std::byte*> keys(fast.pages), values(fast.pages);
  kernels.Attention(fast.Task(0, 0, keys, values));
  ReferenceKernels().Attention(slow.Task(0, 0, keys, values));
  const double allowed = static_cast<double>(positions + 4 * shape.head_dim) * std::numeric_limits<float>::epsilon();
  double worst = 0;
  for (std::size_t i = 0; i < shape.heads / shape.kv_heads * shape.head_dim; ++i)
    worst = Worse(worst, std::abs(static_cast<double>(fast.out[i]) - slow.out[i]) / allowed);
  return worst;
}

class KernelBench {
 public:
  KernelBench(const KernelBenchOptions& options, const Kernels& kernels, ThreadPool& pool)
      : options_(options), kernels_(kernels), pool_(pool) {}

  Status MatMuls(const MatrixShape& shape, WeightType type, std::vector<KernelResult>& results) {
    const ColdWeights weights(shape, type, options_.cold_bytes, pool_);
    KernelResult result{.kernel = "matmul",
                        .model = shape.model,
                        .shape = Cat(shape.matrix, " ", shape.outputs, "x", shape.inputs),
                        .type = std::string(Name(type)),
                        .largest_error = MatMulError(kernels_, weights.matrices().front())};
    MOE_RETURN_IF_ERROR(CheckError(result));
    ReadRoof memory;
    for (const PackedMatrix& w : weights.matrices()) memory.Add({w.panel(0), w.bytes()});
    const auto count = static_cast<double>(weights.matrices().size());
    for (const std::size_t rows : options_.rows) {
      AlignedBuffer<float> x_data(rows * shape.inputs), y_data(rows * shape.outputs);
      FillRandom(x_data.span(), rows);
      const MatrixView<const float> x(x_data.data(), rows, shape.inputs);
      const MatrixView<float> y(y_data.data(), rows, shape.outputs);
      CpuMatMul matmul(pool_, kernels_, IsQuantized(type) ? rows : 0, shape.inputs);
      const PassWork work{
          .bytes = count * static_cast<double>(MatrixBytes(shape.outputs, shape.inputs, type)),
          .operations = 2 * count * static_cast<double>(shape.outputs * shape.inputs) * static_cast<double>(rows),
          .format = IsQuantized(type) ? "int8" : "fp32"};
      result.rows = rows;
      Time(work, memory, result, [&] {
        for (const PackedMatrix& w : weights.matrices()) matmul.Run(x, w, {}, y);
      });
      results.push_back(result);
    }
    return Status::Ok();
  }

  Status Attentions(const HeadsShape& shape, KvType type, std::size_t positions, std::vector<KernelResult>& results) {
    KernelResult result{
        .kernel = "attention",
        .model = shape.model,
        .shape = Cat(shape.heads, " heads on ", shape.kv_heads, " of ", shape.head_dim, ", ", positions, " positions"),
        .type = std::string(Name(type)),
        .rows = 1,
        .largest_error = AttentionError(kernels_, shape, type, positions)};
    MOE_RETURN_IF_ERROR(CheckError(result));
    // Decoding of as many sequences as it takes to leave the cache.
    const std::size_t bytes = positions * shape.kv_heads * shape.head_dim * 2 * BytesPerElement(type);
    const std::size_t sequences = std::max<std::size_t>(1, (options_.cold_bytes + bytes - 1) / bytes);
    AttentionCase work(shape, type, positions, sequences);
    ReadRoof memory;
    memory.Add(work.cache.span());
    const auto threads = static_cast<std::size_t>(pool_.threads());
    std::vector<std::vector<const std::byte*>> keys(threads, std::vector<const std::byte*>(work.pages)), values = keys;
    const double pairs = static_cast<double>(sequences * shape.heads * positions) * static_cast<double>(shape.head_dim);
    // Keys and values of 16 bits are widened.
    Time({.bytes = static_cast<double>(sequences * bytes), .operations = 4 * pairs, .format = "fp32"}, memory, result,
         [&] {
           pool_.ParallelFor(sequences * shape.kv_heads, [&](std::size_t item, int thread) {
             const auto t = static_cast<std::size_t>(thread);
             kernels_.Attention(work.Task(item / shape.kv_heads, item % shape.kv_heads, keys[t], values[t]));
           });
         });
    results.push_back(result);
    return Status::Ok();
  }

 private:
  /// What a pass of a kernel does, and the factors that it multiplies.
  struct PassWork {
    double bytes = 0;
    double operations = 0;
    std::string_view format;  // of DotInstruction
  };

  static Status CheckError(const KernelResult& result) {
    if (result.largest_error <= 1) return Status::Ok();  // not a number is not
    return Internal(result.kernel, " of ", result.model, ", ", result.shape, ", in ", result.type,
                    " differs from the reference by ", result.largest_error, " times what rounding allows");
  }

  /// Passes of roofs and kernel by turns for about --seconds, after one of the kernel that is not counted.
  void Time(const PassWork& work, const ReadRoof& memory, KernelResult& result, FunctionRef<void()> pass) {
    const DotInstruction* const instruction = InstructionOf(kernels_.name(), work.format);
    std::vector<double> seconds, reads, peaks, read_shares, peak_shares;
    pass();
    const TimePoint begin = Clock::now();
    while (seconds.size() < kLeastPasses || Seconds(Clock::now() - begin) < options_.seconds) {
      reads.push_back(memory.Pass(pool_).bytes_per_s);
      if (instruction != nullptr) peaks.push_back(DotPass(pool_, *instruction));
      const TimePoint start = Clock::now();
      pass();
      seconds.push_back(Seconds(Clock::now() - start));
      read_shares.push_back(work.bytes / seconds.back() / reads.back());
      if (instruction != nullptr) peak_shares.push_back(work.operations / seconds.back() / peaks.back());
    }
    const double median = Median(std::move(seconds));
    result.bytes_per_s = work.bytes / median;
    result.operations_per_s = work.operations / median;
    result.read_bytes_per_s = Median(std::move(reads));
    result.share_of_bandwidth = Median(std::move(read_shares));
    if (instruction == nullptr) return;
    result.peak = {.instruction = Cat(instruction->format, " ", instruction->instruction_set),
                   .operations_per_s = Median(std::move(peaks)),
                   .share = Median(std::move(peak_shares))};
  }

  const KernelBenchOptions& options_;
  const Kernels& kernels_;
  ThreadPool& pool_;
};

}  // namespace

std::vector<MatrixShape> MatrixShapes() {
  return {
      {"olmoe-1b-7b", "expert gate and up", 2 * 1024, 2048},  {"olmoe-1b-7b", "expert down", 2048, 1024},
      {"olmoe-1b-7b", "q, k and v", 3 * 2048, 2048},          {"mixtral-8x7b", "expert gate and up", 2 * 14336, 4096},
      {"mixtral-8x7b", "expert down", 4096, 14336},           {"mixtral-8x7b", "q, k and v", 4096 + 2 * 1024, 4096},
      {"qwen3-30b-a3b", "expert gate and up", 2 * 768, 2048}, {"qwen3-30b-a3b", "expert down", 2048, 768},
      {"qwen3-30b-a3b", "q, k and v", 4096 + 2 * 512, 2048},
  };
}

std::vector<HeadsShape> HeadsShapes() {
  return {{"olmoe-1b-7b", 16, 16, 128}, {"mixtral-8x7b", 32, 8, 128}, {"qwen3-30b-a3b", 32, 4, 128}};
}

Status CheckKernelBench(const KernelBenchOptions& options) {
  if (options.rows.empty() && options.contexts.empty())
    return InvalidArgument("--rows and --contexts leave nothing to measure");
  for (const std::size_t rows : options.rows)
    if (rows == 0 || rows > kMostRows) return InvalidArgument("--rows ", rows, " is not from 1 to ", kMostRows);
  constexpr std::size_t kMostPositions = 1 << 20;
  for (const std::size_t positions : options.contexts)
    if (positions == 0 || positions > kMostPositions)
      return InvalidArgument("--contexts ", positions, " is not from 1 to ", kMostPositions);
  const std::vector<HeadsShape> shapes = HeadsShapes();
  std::string known;
  for (const HeadsShape& shape : shapes) known += Cat(known.empty() ? "" : ", ", shape.model);
  for (const std::string& model : options.models)
    if (std::ranges::find(shapes, model, &HeadsShape::model) == shapes.end())
      return InvalidArgument("--models ", model, " is unknown (", known, ")");
  return Status::Ok();
}

Result<std::vector<KernelResult>> RunKernelBench(const KernelBenchOptions& options, const Kernels& kernels,
                                                 const std::function<void(const std::string&)>& starting) {
  ThreadPool pool({.threads = options.threads, .spin_microseconds = 20});
  KernelBench bench(options, kernels, pool);
  std::vector<KernelResult> results;
  for (const MatrixShape& shape : MatrixShapes()) {
    if (!Chosen(options, shape.model) || options.rows.empty()) continue;
    for (const WeightType type : options.weight_types) {
      starting(Cat(shape.model, " ", shape.matrix, " ", Name(type)));
      MOE_RETURN_IF_ERROR(bench.MatMuls(shape, type, results));
    }
  }
  for (const HeadsShape& shape : HeadsShapes()) {
    if (!Chosen(options, shape.model)) continue;
    for (const KvType type : options.kv_types) {
      for (const std::size_t positions : options.contexts) {
        starting(Cat(shape.model, " attention over ", positions, " ", Name(type)));
        MOE_RETURN_IF_ERROR(bench.Attentions(shape, type, positions, results));
      }
    }
  }
  return results;
}

}  // namespace moe
