#include "tests/emulation/stack_switch.h"

#include <cstdint>
#include <cstring>

#include "core/check.h"

#if defined(__x86_64__)

// What a call must keep (System V ABI, 3.2.1) goes to the stack that is left, its pointer to *rdi; the same comes from
// the stack that rsi points at. The rounding modes stay what they are: nobody here changes them.
asm(R"(
.text
.globl moe_emulation_switch
.type moe_emulation_switch, @function
moe_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size moe_emulation_switch, .-moe_emulation_switch
)");
extern "C" void moe_emulation_switch(void** from, void* to);

namespace moe::emulation {

void StackSwitch::Prepare(std::byte* stack, std::size_t bytes, void (*main)()) {
  constexpr std::size_t kRegisters = 6;
  auto top = reinterpret_cast<std::uintptr_t>(stack + bytes) & ~std::uintptr_t{15};
  // As a call leaves it: 8 below a multiple of 16, a return address on top, which is never used.
  auto* frame = reinterpret_cast<std::uintptr_t*>(top) - 1;
  *frame = 0;
  *--frame = reinterpret_cast<std::uintptr_t>(main);
  for (std::size_t i = 0; i < kRegisters; ++i) *--frame = 0;
  stack_pointer_ = frame;
}

void StackSwitch::Switch(StackSwitch& from, StackSwitch& to) {
  moe_emulation_switch(&from.stack_pointer_, to.stack_pointer_);
}

}  // namespace moe::emulation

#else

namespace moe::emulation {

void StackSwitch::Prepare(std::byte* stack, std::size_t bytes, void (*main)()) {
  MOE_CHECK(getcontext(&context_) == 0, "getcontext failed");
  context_.uc_stack.ss_sp = stack;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, main, 0);
}

void StackSwitch::Switch(StackSwitch& from, StackSwitch& to) { swapcontext(&from.context_, &to.context_); }

}  // namespace moe::emulation

#endif
