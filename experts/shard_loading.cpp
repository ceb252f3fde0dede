#include "experts/shard_loading.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/clock.h"
#include "model/mlp_checksum.h"

namespace moe {
namespace {

// A thread of this priority gets about a tenth of the time of one that computes, where both want the same processor,
// and all of a processor that nobody else wants. Linux has a priority for each thread.
constexpr int kNice = 10;

}  // namespace

std::chrono::nanoseconds PauseAfter(std::uint64_t bytes, std::chrono::nanoseconds took, std::uint64_t bytes_per_s) {
  if (bytes_per_s == 0) return std::chrono::nanoseconds(0);
  const double seconds = static_cast<double>(bytes) / static_cast<double>(bytes_per_s);
  constexpr double kLongest = 86'400;  // of one expert: a limit of a few bytes per second is no reason to overflow
  const auto due =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(std::min(seconds, kLongest)));
  return std::max(due - took, std::chrono::nanoseconds(0));
}

ShardLoading::ShardLoading(Options options)
    : options_(std::move(options)), thread_([this] {
        outcome_ = Run();
        done_ = true;
      }) {}

ShardLoading::~ShardLoading() {
  GiveUp();
  thread_.join();
}

void ShardLoading::GiveUp() {
  {
    const std::lock_guard lock(mutex_);
    given_up_ = true;
  }
  changed_.notify_all();
}

bool ShardLoading::Pause(std::chrono::nanoseconds pause) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, pause, [this] { return given_up_; });
}

Status ShardLoading::Run() {
  (void)setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNice);  // a refusal costs speed, not correctness
  MOE_RETURN_IF_ERROR(LoadAll());
  AddChecksums();
  return Status::Ok();
}

Status ShardLoading::LoadAll() {
  for (const ExpertShard::Missing& missing : options_.shard.missing()) {
    const ExpertShard::Layer& layer = options_.shard.layers()[missing.index];
    const int expert = layer.experts[missing.slot];
    if (!Pause({})) return Cancelled("the load was given up");
    const TimePoint begin = Clock::now();
    Result<MlpWeights> weights = options_.load(layer.layer, expert);
    if (!weights.ok()) return weights.status().WithContext(Cat("layer ", layer.layer, ", expert ", expert));
    const std::uint64_t bytes = weights->bytes();
    options_.shard.Put(missing, std::make_shared<const MlpWeights>(*std::move(weights)));
    ++loaded_experts_;
    loaded_bytes_ += bytes;
    if (!Pause(PauseAfter(bytes, Clock::now() - begin, options_.bytes_per_s)))
      return Cancelled("the load was given up");
  }
  return Status::Ok();
}

void ShardLoading::AddChecksums() {
  for (const Options::Check& check : options_.checks) {
    const auto weights = check.weights != nullptr ? check.weights : options_.shard.Expert(check.layer, check.expert);
    checksums_.push_back(Checksum(*weights));
  }
}

}  // namespace moe
