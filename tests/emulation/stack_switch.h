// From one stack to another. An emulated launch switches some hundred thousand times, and swapcontext asks the kernel
// for the signal mask each time: on x86-64 the switch is a few instructions of our own, elsewhere swapcontext.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace moe::emulation {

/// Where a suspended stack goes on.
class StackSwitch {
 public:
  /// The next SwitchTo this one calls `main`, which never returns, on a stack of `bytes` bytes from `stack` on.
  void Prepare(std::byte* stack, std::size_t bytes, void (*main)());

  /// Keeps where the caller is in `from` and goes on at `to`.
  static void Switch(StackSwitch& from, StackSwitch& to);

 private:
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_ = {};
#endif
};

}  // namespace moe::emulation
