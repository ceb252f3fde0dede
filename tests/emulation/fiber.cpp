#include "tests/emulation/fiber.h"

#include "core/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define MOE_UNDER_ASAN 1
#else
#define MOE_UNDER_ASAN 0
#endif

namespace moe::emulation {
namespace {

// Kernels keep little on the stack; the sanitizer puts red zones around all of it.
constexpr std::size_t kStackBytes = MOE_UNDER_ASAN ? 256 << 10 : 64 << 10;

/// Tells the address sanitizer that the stack is about to change; `fake_stack` null: the stack left is done with.
void BeforeSwitch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack,
                  [[maybe_unused]] std::size_t bytes) {
#if MOE_UNDER_ASAN
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}

void AfterSwitch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** old_stack,
                 [[maybe_unused]] std::size_t* old_bytes) {
#if MOE_UNDER_ASAN
  __sanitizer_finish_switch_fiber(fake_stack, old_stack, old_bytes);
#endif
}

thread_local Fiber* starting = nullptr;  // resumed last: the one whose stack begins, if it does

}  // namespace

Fiber::Fiber() : stack_(new std::byte[kStackBytes]) { own_.Prepare(stack_.get(), kStackBytes, &Fiber::Main); }

Fiber::~Fiber() = default;

void Fiber::Main() { starting->Loop(); }

void Fiber::Loop() {
  AfterSwitch(nullptr, &scheduler_stack_, &scheduler_stack_bytes_);
  while (true) {
    (*body_)();
    ended_ = true;
    Suspend();
  }
}

void Fiber::Start(const FunctionRef<void()>& body) {
  MOE_CHECK(ended_, "a fiber's body has not ended");
  body_ = &body;
  ended_ = false;
}

void Fiber::Resume() {
  starting = this;
  BeforeSwitch(&scheduler_fake_stack_, stack_.get(), kStackBytes);
  StackSwitch::Switch(scheduler_, own_);
  AfterSwitch(scheduler_fake_stack_, nullptr, nullptr);
}

void Fiber::Suspend() {
  BeforeSwitch(&own_fake_stack_, scheduler_stack_, scheduler_stack_bytes_);
  StackSwitch::Switch(own_, scheduler_);
  AfterSwitch(own_fake_stack_, &scheduler_stack_, &scheduler_stack_bytes_);
}

}  // namespace moe::emulation
