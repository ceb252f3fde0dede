// The emulation of one block of threads at a time: a fiber a thread, all on the calling thread, so that a run is the
// same every time. A fiber runs until it waits for others; who runs first is a choice, so that a kernel which lacks a
// barrier gives other results in another order. What a device would leave undefined is a finding instead.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>
#include <string_view>
#include <vector>

#include "core/function_ref.h"
#include "tests/emulation/fiber.h"

namespace moe::emulation {

/// In which order the threads of a block run from one barrier to the next.
enum class ThreadOrder : std::uint8_t { kAscending, kDescending, kShuffled };

/// Sets it for this thread's launches until the end of the scope.
class ScopedThreadOrder {
 public:
  explicit ScopedThreadOrder(ThreadOrder order, std::uint32_t seed = 1);
  ~ScopedThreadOrder();
  ScopedThreadOrder(const ScopedThreadOrder&) = delete;
  ScopedThreadOrder& operator=(const ScopedThreadOrder&) = delete;

 private:
  ThreadOrder order_before_;
  std::uint32_t seed_before_;
};

struct Index3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

/// What was wrong in the launches since the last call, of all threads: a sentence each, with kernel, block, threads.
std::vector<std::string> TakeFindings();

/// Blocks launched so far by this process: a test that expects no finding may want to know that something ran.
std::uint64_t BlocksRun();

/// Runs all blocks of a launch, one after the other; `body` is the kernel with its arguments.
void RunGrid(std::string_view kernel, Index3 blocks, unsigned threads, std::size_t shared_bytes,
             const FunctionRef<void()>& body);

class Block {
 public:
  static constexpr unsigned kLanes = 32;
  static constexpr unsigned kMaxThreads = 1024;
  static constexpr std::size_t kMaxSharedBytes = 48 << 10;  // what a launch may ask for without more ado

  /// The one that runs on this thread.
  static Block& Current();

  Index3 index() const { return index_; }
  Index3 grid() const { return grid_; }
  unsigned thread() const { return thread_; }
  unsigned threads() const { return threads_; }

  /// Grows from one barrier to the next, through all blocks of the thread.
  std::uint64_t interval() const { return interval_; }
  /// The value of interval() when the block began.
  std::uint64_t first_interval() const { return first_interval_; }

  void Barrier(const std::source_location& site);

  static constexpr std::size_t kMaxLaneBytes = 64;
  using Lanes = std::array<std::array<std::byte, kMaxLaneBytes>, kLanes>;
  /// All lanes of `mask` bring `bytes` bytes each; gives what each of them brought, valid until the next one.
  const Lanes& Gather(unsigned mask, const void* mine, std::size_t bytes, const std::source_location& site);

  /// A wrong use by the thread that runs: the finding names kernel, block and thread.
  void Report(std::string_view what);
  /// The same, after which the block cannot go on. The caller's stack is never unwound: it holds nothing that must be.
  [[noreturn]] void Fail(std::string what);

  std::byte* dynamic_memory() { return dynamic_.get(); }
  std::size_t dynamic_bytes() const { return dynamic_bytes_; }

 private:
  friend void RunGrid(std::string_view, Index3, unsigned, std::size_t, const FunctionRef<void()>&);

  enum class State : std::uint8_t { kReady, kAtBarrier, kAtGather, kEnded };
  struct Thread {
    std::unique_ptr<Fiber> fiber;
    State state = State::kEnded;
    std::source_location site;  // where it waits
  };
  struct Warp {
    unsigned mask = 0;     // of the gathering under way
    unsigned arrived = 0;  // of its lanes; 0: none is under way
    std::source_location site;
    int turn = 0;                 // which of the two buffers
    std::array<Lanes, 2> values;  // two, since a lane may be one gathering ahead of another
  };

  void RunOne(Index3 index, const FunctionRef<void()>& body);
  bool RunReadyThreads();
  bool ReleaseBarrier();
  bool KeepsWaiting(unsigned waiting, unsigned other) const;
  void Wait(State state, const std::source_location& site);
  std::string Where(unsigned thread) const;

  std::string_view kernel_;
  Index3 grid_;
  Index3 index_;
  unsigned threads_ = 0;
  unsigned thread_ = 0;
  bool failed_ = false;
  std::uint64_t interval_ = 0;
  std::uint64_t first_interval_ = 0;
  std::vector<Thread> pool_;
  std::vector<unsigned> order_;
  std::vector<Warp> warps_;
  std::unique_ptr<std::byte[]> dynamic_;
  std::size_t dynamic_bytes_ = 0;
};

}  // namespace moe::emulation
