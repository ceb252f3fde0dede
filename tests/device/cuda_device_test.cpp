// The table over real CUDA. Skipped, with the reason, where there is no device.
#include <gtest/gtest.h>

#include <cstring>

#include "device/device_api.h"
#include "device/device_handles.h"
#include "kernels/weight_type.h"

namespace moe {
namespace {

class CudaDeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<DeviceApi>> opened = OpenCudaDevice();
    if (!opened.ok()) GTEST_SKIP() << opened.status().message();
    device_ = *std::move(opened);
    ASSERT_TRUE(device_->SetDevice(0).ok());
    stream_ = *MakeStream(*device_);
  }

  std::unique_ptr<DeviceApi> device_;
  Stream stream_;
};

TEST(CudaDevice, SaysWhyThereIsNone) {
  const Result<std::unique_ptr<DeviceApi>> opened = OpenCudaDevice();
  if (opened.ok()) GTEST_SKIP() << "there is a device";
  EXPECT_EQ(opened.status().code(), StatusCode::kUnavailable);
  EXPECT_TRUE(opened.status().message().starts_with(BuiltWithCuda() ? "there is no CUDA" : "this build has no CUDA"))
      << opened.status().message();
}

TEST_F(CudaDeviceTest, HasAName) {
  const Result<DeviceProperties> properties = device_->Properties(0);
  ASSERT_TRUE(properties.ok()) << properties.status().message();
  EXPECT_FALSE(properties->name.empty());
  EXPECT_GE(properties->compute_major, 8);
  EXPECT_LE(properties->free_bytes, properties->total_bytes);
}

TEST_F(CudaDeviceTest, CopiesThroughTheDeviceAndBackBehindAnEvent) {
  const DeviceBuffer a = *DeviceBuffer::Allocate(*device_, 1000), b = *DeviceBuffer::Allocate(*device_, 1000);
  const PinnedBuffer in = *PinnedBuffer::Allocate(*device_, 1000), out = *PinnedBuffer::Allocate(*device_, 1000);
  const Stream other = *MakeStream(*device_);
  const Event copied = *MakeEvent(*device_), back = *MakeEvent(*device_);
  for (std::size_t i = 0; i < 1000; ++i) in.span()[i] = static_cast<std::byte>(i);
  ASSERT_TRUE(device_->CopyToDevice(in.span(), a.span(), stream_.get()).ok());
  ASSERT_TRUE(device_->CopyOnDevice(a.span(), b.span(), stream_.get()).ok());
  ASSERT_TRUE(device_->RecordEvent(copied.get(), stream_.get()).ok());
  ASSERT_TRUE(device_->WaitForEvent(other.get(), copied.get()).ok());
  ASSERT_TRUE(device_->CopyToHost(b.span(), out.span(), other.get()).ok());
  ASSERT_TRUE(device_->RecordEvent(back.get(), other.get()).ok());
  ASSERT_TRUE(device_->SynchronizeEvent(back.get()).ok());
  EXPECT_TRUE(*device_->QueryEvent(back.get()));
  EXPECT_EQ(std::memcmp(in.span().data(), out.span().data(), 1000), 0);
}

TEST_F(CudaDeviceTest, ReplaysAGraph) {
  const DeviceBuffer memory = *DeviceBuffer::Allocate(*device_, 16);
  const PinnedBuffer out = *PinnedBuffer::Allocate(*device_, 16);
  ASSERT_TRUE(device_->BeginCapture(stream_.get()).ok());
  ASSERT_TRUE(device_->Fill(memory.span(), 7, stream_.get()).ok());
  ASSERT_TRUE(device_->CopyToHost(memory.span(), out.span(), stream_.get()).ok());
  const Graph graph = *FinishCapture(*device_, stream_.get());
  ASSERT_TRUE(device_->LaunchGraph(graph.get(), stream_.get()).ok());
  ASSERT_TRUE(device_->SynchronizeStream(stream_.get()).ok());
  for (const std::byte byte : out.span()) EXPECT_EQ(byte, std::byte{7});
}

TEST_F(CudaDeviceTest, AnImpossibleAllocationSaysSo) {
  const Status status = DeviceBuffer::Allocate(*device_, std::size_t{1} << 60).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status.message();
}

// out (1, 8) = in (1, 8) · weights (8, 8)ᵀ, where weights is 2 on the diagonal.
TEST_F(CudaDeviceTest, GroupedGemmMultiplies) {
  constexpr int kSize = 8;
  const PinnedBuffer staged = *PinnedBuffer::Allocate(*device_, 512);
  const DeviceBuffer weights = *DeviceBuffer::Allocate(*device_, 128), in = *DeviceBuffer::Allocate(*device_, 16);
  const DeviceBuffer out = *DeviceBuffer::Allocate(*device_, 32), pointers = *DeviceBuffer::Allocate(*device_, 24);
  std::uint16_t values[72];
  for (int i = 0; i < 64; ++i) values[i] = F32ToBf16(i % 9 == 0 ? 2.0F : 0.0F);
  for (int i = 0; i < kSize; ++i) values[64 + i] = F32ToBf16(static_cast<float>(i));
  std::memcpy(staged.span().data(), values, sizeof(values));
  void* table[3] = {weights.span().address, in.span().address, out.span().address};
  std::memcpy(staged.span().data() + 256, table, sizeof(table));
  ASSERT_TRUE(device_->CopyToDevice(staged.span().first(128), weights.span(), stream_.get()).ok());
  ASSERT_TRUE(device_->CopyToDevice(staged.span().subspan(128, 16), in.span(), stream_.get()).ok());
  ASSERT_TRUE(device_->CopyToDevice(staged.span().subspan(256, 24), pointers.span(), stream_.get()).ok());
  if (const Status prepared = device_->PrepareGemm(); !prepared.ok()) GTEST_SKIP() << prepared.message();
  const GemmGroup group{.rows = 1, .outputs = kSize, .inner = kSize, .count = 1};
  const Status status = device_->RunGroupedGemm({.groups = {&group, 1},
                                                 .weights = pointers.span().subspan(0, 8),
                                                 .in = pointers.span().subspan(8, 8),
                                                 .out = pointers.span().subspan(16, 8)},
                                                stream_.get());
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_TRUE(device_->CopyToHost(out.span(), staged.span().subspan(384, 32), stream_.get()).ok());
  ASSERT_TRUE(device_->SynchronizeStream(stream_.get()).ok());
  float sums[kSize];
  std::memcpy(sums, staged.span().data() + 384, sizeof(sums));
  for (int i = 0; i < kSize; ++i) EXPECT_EQ(sums[i], static_cast<float>(2 * i));
}

}  // namespace
}  // namespace moe
