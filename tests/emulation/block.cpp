#include "tests/emulation/block.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <span>
#include <utility>

#include "core/check.h"
#include "core/text.h"

namespace moe::emulation {
namespace {

constexpr std::size_t kMostFindings = 256;  // a wrong kernel is wrong in every block

std::mutex findings_mutex;
std::vector<std::string> findings;
std::atomic<std::uint64_t> blocks_run{0};

thread_local ThreadOrder thread_order = ThreadOrder::kAscending;
thread_local std::uint32_t thread_order_seed = 1;
thread_local Block* current_block = nullptr;

void AddFinding(std::string finding) {
  const std::lock_guard lock(findings_mutex);
  if (findings.size() < kMostFindings) findings.push_back(std::move(finding));
}

bool SameSite(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

std::string SiteName(const std::source_location& site) { return Cat(site.file_name(), ":", site.line()); }

}  // namespace

ScopedThreadOrder::ScopedThreadOrder(ThreadOrder order, std::uint32_t seed)
    : order_before_(std::exchange(thread_order, order)), seed_before_(std::exchange(thread_order_seed, seed)) {}

ScopedThreadOrder::~ScopedThreadOrder() {
  thread_order = order_before_;
  thread_order_seed = seed_before_;
}

std::vector<std::string> TakeFindings() {
  const std::lock_guard lock(findings_mutex);
  return std::exchange(findings, {});
}

std::uint64_t BlocksRun() { return blocks_run.load(std::memory_order_relaxed); }  // a count of its own

Block& Block::Current() {
  MOE_CHECK(current_block != nullptr, "a kernel's code runs outside of a launch");
  return *current_block;
}

void RunGrid(std::string_view kernel, Index3 blocks, unsigned threads, std::size_t shared_bytes,
             const FunctionRef<void()>& body) {
  static thread_local Block block;  // its fibers' stacks are used again
  MOE_CHECK(current_block == nullptr, "a launch inside of a launch");
  block.kernel_ = kernel;
  block.grid_ = blocks;
  if (threads == 0 || threads > Block::kMaxThreads || threads % Block::kLanes != 0 ||
      shared_bytes > Block::kMaxSharedBytes || blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.y > 65535 ||
      blocks.z > 65535) {
    return AddFinding(Cat("kernel ", kernel, ": a launch of (", blocks.x, ",", blocks.y, ",", blocks.z, ") blocks of ",
                          threads, " threads with ", shared_bytes, " bytes of shared memory is not possible"));
  }
  block.threads_ = threads;
  // The exact size, so that the address sanitizer finds what lies behind it.
  block.dynamic_ = std::make_unique<std::byte[]>(shared_bytes);
  block.dynamic_bytes_ = shared_bytes;
  current_block = &block;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) block.RunOne({x, y, z}, body);
  current_block = nullptr;
}

void Block::RunOne(Index3 index, const FunctionRef<void()>& body) {
  index_ = index;
  failed_ = false;
  first_interval_ = ++interval_;
  if (pool_.size() < threads_) pool_.resize(threads_);
  warps_.resize(threads_ / kLanes);
  for (Warp& warp : warps_) warp.arrived = 0;
  order_.resize(threads_);
  std::iota(order_.begin(), order_.end(), 0u);
  if (thread_order == ThreadOrder::kDescending) std::ranges::reverse(order_);
  if (thread_order == ThreadOrder::kShuffled) {
    std::mt19937 random(thread_order_seed);
    std::ranges::shuffle(order_, random);
  }
  for (unsigned thread = 0; thread < threads_; ++thread) {
    if (pool_[thread].fiber == nullptr) pool_[thread].fiber = std::make_unique<Fiber>();
    pool_[thread].fiber->Start(body);
    pool_[thread].state = State::kReady;
  }
  while (!failed_ && (RunReadyThreads() || ReleaseBarrier())) continue;
  for (unsigned thread = 0; thread < threads_; ++thread)
    if (!pool_[thread].fiber->ended()) pool_[thread].fiber.reset();  // abandoned where it waits
  blocks_run.fetch_add(1, std::memory_order_relaxed);
}

// One turn; false when no thread was ready.
bool Block::RunReadyThreads() {
  bool ran = false;
  for (const unsigned thread : order_) {
    Thread& next = pool_[thread];
    if (next.state != State::kReady) continue;
    ran = true;
    thread_ = thread;
    next.fiber->Resume();
    if (failed_) return true;
    if (next.fiber->ended()) next.state = State::kEnded;
  }
  return ran;
}

// When nobody can go on: the end of the block, all of it at one barrier, or a finding. True when threads are ready.
bool Block::ReleaseBarrier() {
  const auto of_block = std::span(pool_).first(threads_);
  const auto first = std::ranges::find_if(of_block, [](const Thread& thread) { return thread.state != State::kEnded; });
  if (first == of_block.end()) return false;
  const auto waiting = static_cast<unsigned>(first - of_block.begin());
  for (unsigned thread = 0; thread < threads_; ++thread) {
    if (!KeepsWaiting(waiting, thread)) continue;
    const Thread& other = of_block[thread];
    AddFinding(Cat(Where(waiting), " waits at ", SiteName(first->site),
                   first->state == State::kAtBarrier ? " (barrier)" : " (warp)", " for thread ", thread,
                   other.state == State::kEnded ? ", which has ended" : Cat(", which waits at ", SiteName(other.site)),
                   ": divergent"));
    failed_ = true;
    return false;
  }
  ++interval_;
  for (Thread& thread : of_block) thread.state = State::kReady;
  return true;
}

// Whether `other` is not where `waiting` waits for it.
bool Block::KeepsWaiting(unsigned waiting, unsigned other) const {
  const Thread& thread = pool_[waiting];
  if (thread.state == State::kAtGather) {
    const Warp& warp = warps_[waiting / kLanes];
    const unsigned lane = 1u << other % kLanes;
    return other / kLanes == waiting / kLanes && (warp.mask & lane) != 0 && (warp.arrived & lane) == 0;
  }
  return pool_[other].state != State::kAtBarrier || !SameSite(pool_[other].site, thread.site);
}

void Block::Wait(State state, const std::source_location& site) {
  const unsigned self = thread_;
  pool_[self].state = state;
  pool_[self].site = site;
  pool_[self].fiber->Suspend();
  thread_ = self;
}

void Block::Barrier(const std::source_location& site) { Wait(State::kAtBarrier, site); }

const Block::Lanes& Block::Gather(unsigned mask, const void* mine, std::size_t bytes,
                                  const std::source_location& site) {
  MOE_CHECK(bytes <= kMaxLaneBytes, "a lane brings too much");
  const unsigned lane = thread_ % kLanes;
  Warp& warp = warps_[thread_ / kLanes];
  const unsigned first = thread_ - lane;
  if ((mask >> lane & 1) == 0) {
    std::string what = Cat("is not in the mask of its own warp operation at ", SiteName(site));
    Fail(std::move(what));
  }
  if (warp.arrived == 0) {
    warp.mask = mask;
    warp.site = site;
    warp.turn ^= 1;
  } else if (mask != warp.mask || !SameSite(site, warp.site)) {
    std::string what = Cat("is at the warp operation at ", SiteName(site), " while others of its warp are at ",
                           SiteName(warp.site), mask != warp.mask ? " with another mask" : "", ": divergent");
    Fail(std::move(what));
  }
  Lanes& values = warp.values[static_cast<std::size_t>(warp.turn)];
  std::memcpy(values[lane].data(), mine, bytes);
  warp.arrived |= 1u << lane;
  if (warp.arrived != mask) {
    Wait(State::kAtGather, site);
    return values;
  }
  warp.arrived = 0;
  for (unsigned other = 0; other < kLanes; ++other)
    if ((mask >> other & 1) != 0 && other != lane) pool_[first + other].state = State::kReady;
  return values;
}

std::string Block::Where(unsigned thread) const {
  return Cat("kernel ", kernel_, ", block (", index_.x, ",", index_.y, ",", index_.z, "), thread ", thread);
}

void Block::Report(std::string_view what) { AddFinding(Cat(Where(thread_), " ", what)); }

void Block::Fail(std::string what) {
  Report(what);
  what = {};  // the stack is abandoned, and nothing may hang on it
  what.shrink_to_fit();
  failed_ = true;
  pool_[thread_].fiber->Suspend();  // for good
  std::abort();
}

}  // namespace moe::emulation
