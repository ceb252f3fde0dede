// A function that can stop in its middle and go on later: one thread of an emulated block.
#pragma once

#include <cstddef>
#include <memory>

#include "core/function_ref.h"
#include "tests/emulation/stack_switch.h"

namespace moe::emulation {

/// Runs one body after the other on a stack of its own. Bodies that never come to their end may be abandoned by
/// destroying the fiber; what lies on its stack is then not destroyed.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// The body that the next Resume starts; the one before has ended. It outlives the run.
  void Start(const FunctionRef<void()>& body);
  /// Called by the scheduler: runs until the body suspends itself or ends.
  void Resume();
  /// Called by the body: back to the scheduler.
  void Suspend();
  bool ended() const { return ended_; }

 private:
  static void Main();
  void Loop();

  StackSwitch own_;
  StackSwitch scheduler_;
  std::unique_ptr<std::byte[]> stack_;
  const FunctionRef<void()>* body_ = nullptr;
  bool ended_ = true;
  // What the address sanitizer is told at a switch: it checks addresses against the stack in use.
  void* own_fake_stack_ = nullptr;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
};

}  // namespace moe::emulation
