// The NCCL transport over the real library. What needs two devices is skipped, with the reason, where there are fewer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/contract/scripted_worker.h"
#include "transport/nccl/nccl_transport.h"

namespace moe {
namespace {

constexpr TransportLimits kLimits{
    .max_request_bytes = std::size_t{1} << 20, .max_reply_bytes = std::size_t{1} << 20, .max_exchanges = 2};

TEST(NcclLibrary, IsThereWithAllFunctionsOrSaysWhyNot) {
  const Result<std::unique_ptr<NcclApi>> nccl = OpenNccl();
  if (nccl.ok()) return;
  EXPECT_EQ(nccl.status().code(), StatusCode::kUnavailable) << nccl.status().message();
  EXPECT_THAT(nccl.status().message(), testing::HasSubstr(BuiltWithNccl() ? "NCCL is not here" : "this build has no"));
}

// A router on device 0 and a worker on device 1, as threads of this process.
class NcclGpuTest : public testing::Test {
 protected:
  void SetUp() override {
    for (Side* side : {&router_, &worker_}) {
      Result<std::unique_ptr<DeviceApi>> device = OpenCudaDevice();
      if (!device.ok()) GTEST_SKIP() << device.status().message();
      side->device = *std::move(device);
      Result<std::unique_ptr<NcclApi>> nccl = OpenNccl();
      if (!nccl.ok()) GTEST_SKIP() << nccl.status().message();
      side->nccl = *std::move(nccl);
    }
    const int devices = *router_.device->DeviceCount();
    if (devices < 2) GTEST_SKIP() << "NCCL needs a device for each rank; this machine has " << devices;
    thread_ = std::thread([this] {
      Result<std::unique_ptr<WorkerEndpoint>> endpoint = MakeNcclEndpoint(*worker_.nccl, *worker_.device, Options(1));
      MOE_CHECK(endpoint.ok(), endpoint.status().message());
      RunScriptedWorker(**endpoint);
    });
    Result<std::unique_ptr<Transport>> made = MakeNcclTransport(*router_.nccl, *router_.device, Options(0));
    MOE_CHECK(made.ok(), made.status().message());
    transport_ = *std::move(made);
  }
  void TearDown() override {
    transport_.reset();
    if (thread_.joinable()) thread_.join();
  }

  void EchoOnce(Exchange& exchange, std::size_t bytes) {
    const std::span<std::byte> request = exchange.request(WorkerId(0)).first(bytes);
    FillPattern(bytes, request);
    request[0] = static_cast<std::byte>(Command::kEcho);
    ASSERT_TRUE(exchange.Start(std::vector<std::size_t>{bytes}).ok());
    const Status status = exchange.Wait(After(std::chrono::minutes(1)));
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_TRUE(std::ranges::equal(exchange.reply(WorkerId(0)), request));
  }

  std::unique_ptr<Transport> transport_;

 private:
  struct Side {
    std::unique_ptr<DeviceApi> device;
    std::unique_ptr<NcclApi> nccl;
  };

  NcclTransportOptions Options(int rank) {
    return {.limits = kLimits,
            .rank = rank,
            .num_ranks = 2,
            .device = rank,
            .share = [this, rank](const std::string& bytes) -> Result<std::string> {
              if (rank == 0) shared_.set_value(bytes);
              return shared_bytes_.get();
            }};
  }

  Side router_, worker_;
  std::promise<std::string> shared_;
  std::shared_future<std::string> shared_bytes_ = shared_.get_future().share();
  std::thread thread_;
};

TEST_F(NcclGpuTest, EchoesMessagesOfBothForms) {
  const auto exchange = transport_->MakeExchange();
  for (std::size_t bytes = 1; bytes <= kLimits.max_request_bytes; bytes = bytes * 3 + 1) {
    ASSERT_NO_FATAL_FAILURE(EchoOnce(*exchange, bytes));
  }
}

TEST_F(NcclGpuTest, TwoExchangesAreInFlight) {
  const auto held = transport_->MakeExchange();
  const auto other = transport_->MakeExchange();
  held->request(WorkerId(0))[0] = static_cast<std::byte>(Command::kHold);
  ASSERT_TRUE(held->Start(std::vector<std::size_t>{100}).ok());
  ASSERT_NO_FATAL_FAILURE(EchoOnce(*other, 200));
  EXPECT_TRUE(held->Wait(After(std::chrono::minutes(1))).ok());
}

TEST_F(NcclGpuTest, ASilentWorkerIsADeadlineAndNoHang) {
  const auto exchange = transport_->MakeExchange();
  exchange->request(WorkerId(0))[0] = static_cast<std::byte>(Command::kSilent);
  ASSERT_TRUE(exchange->Start(std::vector<std::size_t>{100}).ok());
  EXPECT_EQ(exchange->Wait(After(std::chrono::milliseconds(100))).code(), StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace moe
