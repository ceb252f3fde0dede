// The CUDA backend on a device that is played: the fake runs its calls, the emulation its kernels.
#include "experts/cuda_expert_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "placement/placement.h"
#include "test_folders.h"
#include "tests/device/fake_device.h"
#include "tests/emulation/block.h"
#include "tests/emulation/launch.h"
#include "tests/experts/cuda_backends.h"

namespace moe {
namespace {

using emulation::TakeFindings;
using Path = CudaExpertOptions::Path;
using testing::HasSubstr;
using testing::IsEmpty;

/// A device to which emulated launches go.
struct PlayedDevice {
  explicit PlayedDevice(const FakeDeviceOptions& options = {}) : fake(options) {}

  FakeDevice fake;
  emulation::ScopedLaunchSink sink{[this](DeviceStream stream, const char* kernel, std::function<void()> work) {
    fake.Enqueue(stream, kernel, std::move(work));
  }};
};

/// The contract's device: one for all of its tests, since backends live side by side.
std::optional<PlayedDevice> shared_device;

DeviceApi& SharedDevice() {
  if (!shared_device) shared_device.emplace();
  return shared_device->fake;
}

/// Ends the shared device with the suite, which is when it reports what was left behind.
class DeviceEnd : public testing::EmptyTestEventListener {
  void OnTestEnd(const testing::TestInfo&) override { EXPECT_THAT(TakeFindings(), IsEmpty()); }
  void OnTestSuiteEnd(const testing::TestSuite&) override { shared_device.reset(); }
};

std::vector<ExpertBackendContractParam> FakeBackends() {
  testing::UnitTest::GetInstance()->listeners().Append(new DeviceEnd);
  std::vector<ExpertBackendContractParam> params = CudaBackends("fake", &SharedDevice);
  for (ExpertBackendContractParam& param : params) {
    param.counts_no_allocations = "the fake device keeps records and work in memory of its own";
    param.slow = true;
  }
  return params;
}

INSTANTIATE_TEST_SUITE_P(Cuda, ExpertBackendContract, ::testing::ValuesIn(FakeBackends()),
                         [](const auto& test) { return test.param.name; });

/// Two slots, 30 rows.
struct Step {
  explicit Step(const ExpertLayerCase& c, std::vector<std::uint32_t> offsets_of_slots = {0, 11, 30})
      : layer(MakeExpertLayer(c)),
        offsets(std::move(offsets_of_slots)),
        hidden(c.hidden),
        in(RandomValues(offsets.back() * hidden, 5)),
        out(in.size(), 12345.0f) {}

  Status Run(ExpertBackend& backend) {
    return backend.Run(layer, {.offsets = offsets,
                               .in = MatrixView<const float>(in.data(), offsets.back(), hidden),
                               .out = MatrixView<float>(out.data(), offsets.back(), hidden)});
  }

  ExpertShard::Layer layer;
  std::vector<std::uint32_t> offsets;
  std::size_t hidden;
  std::vector<float> in;
  std::vector<float> out;
};

std::unique_ptr<ExpertBackend> Backend(DeviceApi& device, std::size_t rows, const ExpertLayerCase& c, Path path) {
  auto backend = MakeCudaExpertBackend(
      device, CudaOptions({.rows = rows, .mlps = 8, .hidden = 128, .intermediate = 200, .type = c.type}, path));
  EXPECT_TRUE(backend.ok()) << backend.status().message();
  return *std::move(backend);
}

std::vector<float> ResultOf(DeviceApi& device, const ExpertLayerCase& c, Path path) {
  Step step(c);
  const auto backend = Backend(device, 30, c, path);
  EXPECT_TRUE(backend->Prepare(step.layer).ok());
  const Status status = step.Run(*backend);
  EXPECT_TRUE(status.ok()) << status.message();
  return step.out;
}

TEST(CudaExpertBackend, IntegersGiveTheBitsOfTheCpuOnEveryPath) {
  PlayedDevice device;
  ThreadPool pool(1);
  for (const ExpertLayerCase& c : EachKind({.hidden = 70, .slots = 2}, 44, WeightType::kBf16)) {
    if (!IsQuantized(c.type)) continue;
    Step step(c);
    const auto cpu = MakeCpuExpertBackend(SimdKernels(), pool, Limits(30, 200, c.type));
    ASSERT_TRUE(step.Run(*cpu).ok());
    for (const Path path : {Path::kFixedCapacity, Path::kExactSize})
      EXPECT_TRUE(SameBits(ResultOf(device.fake, c, path), step.out)) << Name(c.type);
  }
}

class CudaExpertFamilies : public testing::TestWithParam<std::string> {};

TEST_P(CudaExpertFamilies, GiveTheBitsOfTheCpu) {
  const std::filesystem::path folder = std::filesystem::path(MOE_SOURCE_DIR) / "tests/goldens" / GetParam();
  const ModelConfig config = *ReadModelConfig(folder);
  const Checkpoint checkpoint = *Checkpoint::Open(folder);
  const Placement placement =
      *LinearPlacement({.num_experts = config.num_experts(), .workers = 1, .layers = config.sparse_layers()});
  const auto hidden = static_cast<std::size_t>(config.hidden);
  PlayedDevice device;
  ThreadPool pool(1);
  for (const WeightType type : {WeightType::kInt8, WeightType::kInt4}) {
    const Result<ExpertShard> shard = ExpertShard::Load(config, checkpoint, placement, WorkerId(0), type, pool);
    ASSERT_TRUE(shard.ok()) << shard.status().message();
    const std::size_t slots = shard->most_slots();
    std::vector<std::uint32_t> offsets;  // 0, 1, 2, 3, 0, 1, … rows
    for (std::uint32_t slot = 0, rows = 0; slot <= slots; rows += slot++ % 4) offsets.push_back(rows);
    const std::size_t rows = offsets.back();
    const auto width = static_cast<std::size_t>(
        config.layers[static_cast<std::size_t>(placement.layers[0].layer)].moe->expert.intermediate);
    const CpuMlpLimits limits{.rows = rows, .mlps = slots, .hidden = hidden, .intermediate = width, .type = type};
    const auto cpu = MakeCpuExpertBackend(SimdKernels(), pool, limits);
    const auto cuda = *MakeCudaExpertBackend(device.fake, CudaOptions(limits));
    const std::vector<float> in = RandomValues(rows * hidden, 3);
    for (const ExpertShard::Layer& layer : shard->layers()) {
      ASSERT_TRUE(cuda->Prepare(layer).ok());
      std::vector<std::vector<float>> out(2, std::vector<float>(rows * hidden));
      for (const std::size_t i : Counts{0, 1}) {
        const Status status = (i == 0 ? *cpu : *cuda)
                                  .Run(layer, {.offsets = offsets,
                                               .in = MatrixView<const float>(in.data(), rows, hidden),
                                               .out = MatrixView<float>(out[i].data(), rows, hidden)});
        ASSERT_TRUE(status.ok()) << status.message();
      }
      EXPECT_TRUE(SameBits(out[1], out[0])) << Name(type) << ", layer " << layer.layer;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, CudaExpertFamilies,
                         testing::Values("deepseek_v2", "deepseek_v3_fp8", "gpt_oss", "llama4_text", "mixtral",
                                         "qwen3_moe", "switch_base"),
                         [](const auto& test) { return test.param; });

/// How often each call was made in `body`.
template <typename Body>
std::vector<std::uint64_t> CallsIn(FakeDevice& device, Body&& body) {
  std::vector<std::uint64_t> calls(kFakeCalls);
  for (std::size_t i = 0; i < kFakeCalls; ++i) calls[i] = device.count(static_cast<FakeCall>(i));
  body();
  for (std::size_t i = 0; i < kFakeCalls; ++i) calls[i] = device.count(static_cast<FakeCall>(i)) - calls[i];
  return calls;
}

std::vector<std::uint64_t> Calls(std::vector<std::pair<FakeCall, std::uint64_t>> calls) {
  std::vector<std::uint64_t> counts(kFakeCalls);
  for (const auto& [call, count] : calls) counts[static_cast<std::size_t>(call)] = count;
  return counts;
}

constexpr ExpertLayerCase kPlainCase{.hidden = 64, .slots = 2, .mlp = {.intermediate = 72}, .type = WeightType::kBf16};

TEST(CudaExpertBackend, AStepOfFewRowsIsOneGraphAndOneWait) {
  PlayedDevice device;
  Step step(kPlainCase);
  const auto backend = Backend(device.fake, 300, kPlainCase, Path::kByRows);
  ASSERT_TRUE(backend->Prepare(step.layer).ok());
  EXPECT_EQ(device.fake.count(FakeCall::kBeginCapture), 3u) << "a graph for each capacity";
  for (int repeat = 0; repeat < 3; ++repeat) {
    EXPECT_EQ(CallsIn(device.fake, [&] { ASSERT_TRUE(step.Run(*backend).ok()); }),
              Calls({{FakeCall::kSetDevice, 1},
                     {FakeCall::kLaunchGraph, 1},
                     {FakeCall::kRecordEvent, 1},
                     {FakeCall::kSynchronizeEvent, 1}}));
  }
}

TEST(CudaExpertBackend, AStepOfManyRowsHasItsOwnSizes) {
  PlayedDevice device;
  Step step(kPlainCase, {0, 0, static_cast<std::uint32_t>(kFixedCapacityRows) + 1});
  const auto backend = Backend(device.fake, 300, kPlainCase, Path::kByRows);
  ASSERT_TRUE(backend->Prepare(step.layer).ok());
  EXPECT_EQ(CallsIn(device.fake, [&] { ASSERT_TRUE(step.Run(*backend).ok()); }),
            Calls({{FakeCall::kSetDevice, 1},
                   {FakeCall::kCopyToDevice, 2},
                   {FakeCall::kLaunch, 3},
                   {FakeCall::kGroupedGemm, 2},
                   {FakeCall::kCopyToHost, 1},
                   {FakeCall::kRecordEvent, 1},
                   {FakeCall::kSynchronizeEvent, 1}}));
  std::size_t copied = 0;
  for (const FakeRecord& record : device.fake.records())
    if (record.call == FakeCall::kCopyToHost) copied = record.bytes;
  EXPECT_EQ(copied, (kFixedCapacityRows + 1) * 64 * sizeof(float));
}

TEST(CudaExpertBackend, PathsAgreeWithinTheirRoundings) {
  PlayedDevice device;
  const std::vector<float> fixed = ResultOf(device.fake, kPlainCase, Path::kFixedCapacity);
  const std::vector<float> exact = ResultOf(device.fake, kPlainCase, Path::kExactSize);
  // bf16 gate, up and result instead of fp32: 2^-9 of each, whose outputs are of about 1.
  for (std::size_t i = 0; i < fixed.size(); ++i) ASSERT_NEAR(fixed[i], exact[i], 0.05) << i;
}

TEST(CudaExpertBackend, NamesItsDevice) {
  PlayedDevice device;
  EXPECT_THAT(std::string(Backend(device.fake, 1, kPlainCase, Path::kByRows)->device()),
              testing::StartsWith("cuda:0 "));
}

TEST(CudaExpertBackend, TellsHowFarTheUploadIs) {
  PlayedDevice device;
  Step step({.hidden = 64, .slots = 3, .mlp = {.intermediate = 72, .bias = true}, .type = WeightType::kInt8},
            {0, 0, 0, 0});
  CudaExpertOptions options = CudaOptions(Limits(4, 72, WeightType::kInt8));
  std::vector<UploadProgress> seen;
  options.observer = [&](const UploadProgress& progress) { seen.push_back(progress); };
  const auto backend = MakeCudaExpertBackend(device.fake, options);
  ASSERT_TRUE(backend.ok() && (*backend)->Prepare(step.layer).ok());
  ASSERT_EQ(seen.size(), 9u) << "three matrices of three slots";
  for (std::size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i].layer, 5);
    EXPECT_EQ(seen[i].bytes, seen[0].bytes);
    EXPECT_GT(seen[i].uploaded_bytes, i == 0 ? 0 : seen[i - 1].uploaded_bytes);
  }
  EXPECT_LE(seen.back().uploaded_bytes, seen[0].bytes);
}

TEST(CudaExpertBackend, RefusesWhatNoDeviceComputes) {
  PlayedDevice device;
  const Status f32 = MakeCudaExpertBackend(device.fake, CudaOptions(Limits(4, 72, WeightType::kF32))).status();
  EXPECT_EQ(f32.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(f32.message(), HasSubstr("f32 (bf16, f16, int8, int4)"));
  Step step(kPlainCase);
  step.layer.mlp.activation = Activation::kGeluGated;
  const Status gelu = Backend(device.fake, 4, kPlainCase, Path::kByRows)->Prepare(step.layer);
  EXPECT_EQ(gelu.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(gelu.message(), HasSubstr("layer 5: no device computes experts with GELU"));
}

TEST(CudaExpertBackend, SaysWhichLayerHasNoRoom) {
  PlayedDevice device({.memory_bytes = 300'000});
  Step step({.hidden = 128, .slots = 8, .mlp = {.intermediate = 200}, .type = WeightType::kBf16},
            {0, 0, 0, 0, 0, 0, 0, 0, 0});
  const Status status = Backend(device.fake, 4, kPlainCase, Path::kByRows)->Prepare(step.layer);
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("weights of layer 5"));
}

/// Everything from a backend's beginning to its end, on both paths.
Status WholeLife(DeviceApi& device) {
  Step few(kPlainCase, {0, 1, 2});
  Step many(kPlainCase, {0, 3, 140});
  MOE_ASSIGN_OR_RETURN(const std::unique_ptr<ExpertBackend> backend,
                       MakeCudaExpertBackend(device, CudaOptions(Limits(140, 72, WeightType::kBf16))));
  MOE_RETURN_IF_ERROR(backend->Prepare(few.layer));
  MOE_RETURN_IF_ERROR(backend->Prepare(many.layer));
  MOE_RETURN_IF_ERROR(few.Run(*backend));
  return many.Run(*backend);
}

TEST(CudaExpertBackend, EveryFailureOfTheDeviceComesBackAndLeavesNothingBehind) {
  std::vector<std::uint64_t> calls;
  {
    PlayedDevice device;
    calls = CallsIn(device.fake, [&] { ASSERT_TRUE(WholeLife(device.fake).ok()); });
  }
  std::size_t failures = 0;
  for (std::size_t i = 0; i < kFakeCalls; ++i) {
    const auto call = static_cast<FakeCall>(i);
    // What owners free, and the wait of the destructor, have nobody to tell.
    if (call == FakeCall::kFreeDevice || call == FakeCall::kFreePinned || call == FakeCall::kDestroyStream ||
        call == FakeCall::kDestroyEvent || call == FakeCall::kDestroyGraph)
      continue;
    for (std::uint64_t nth = 1; nth <= calls[i]; nth += 1 + calls[i] / 12) {
      if (call == FakeCall::kSynchronizeStream && nth == calls[i]) continue;
      PlayedDevice device;  // reports what is left allocated when it ends
      device.fake.FailCall(call, static_cast<int>(nth), Internal("cudaErrorPlanted"));
      const Status status = WholeLife(device.fake);
      EXPECT_THAT(status.message(), HasSubstr("cudaErrorPlanted")) << "call " << i << ", time " << nth;
      ++failures;
    }
  }
  EXPECT_GT(failures, 40u);
}

TEST(DeviceUpload, CarriesMoreThanItsStagingMemoryHolds) {
  PlayedDevice device;
  ASSERT_TRUE(device.fake.SetDevice(0).ok());
  const Stream stream = *MakeStream(device.fake);
  DeviceUpload upload = *DeviceUpload::Make(device.fake, stream.get(), 1000);
  constexpr std::size_t kPiece = 999'983;  // does not divide a half
  constexpr std::size_t kPieces = 13;
  const DeviceBuffer target = *DeviceBuffer::Allocate(device.fake, kPiece * kPieces);
  const PinnedBuffer back = *PinnedBuffer::Allocate(device.fake, kPiece * kPieces);
  upload.Begin(target.span());
  const auto byte_at = [](std::size_t i) { return static_cast<std::byte>(i * 2654435761u >> 13); };
  for (std::size_t piece = 0; piece < kPieces; ++piece) {
    const Result<std::span<std::byte>> out = upload.Next(kPiece);
    ASSERT_TRUE(out.ok());
    for (std::size_t i = 0; i < kPiece; ++i) (*out)[i] = byte_at(piece * kPiece + i);
  }
  ASSERT_TRUE(upload.Finish().ok());
  ASSERT_TRUE(device.fake.CopyToHost(target.span(), back.span(), stream.get()).ok());
  ASSERT_TRUE(device.fake.SynchronizeStream(stream.get()).ok());
  for (std::size_t i = 0; i < back.span().size(); ++i) ASSERT_EQ(back.span()[i], byte_at(i)) << i;
}

}  // namespace
}  // namespace moe
