#include "tests/emulation/shared_memory.h"

namespace moe::emulation {

void AccessRecord::Enter() {
  const std::uint64_t now = Block::Current().interval();
  if (interval_ == now) return;
  interval_ = now;
  writer_ = kNobody;
  readers_[0] = readers_[1] = kNobody;
}

void AccessRecord::NoteReader(int thread) {
  if (readers_[0] == kNobody || readers_[0] == thread) {
    readers_[0] = thread;
  } else {
    readers_[1] = thread;
  }
}

int AccessRecord::OtherReader(int thread) const { return readers_[0] == thread ? readers_[1] : readers_[0]; }

std::string AccessRecord::Read() {
  Enter();
  const auto thread = static_cast<int>(Block::Current().thread());
  NoteReader(thread);
  if (written_ < Block::Current().first_interval()) return "which no thread of the block has written";
  if (writer_ == kNobody || writer_ == thread) return {};
  if (writer_ == kAtomics) return "reads it, and others update it, between the same two barriers: a race";
  return Cat("reads it, and thread ", writer_, " writes it, between the same two barriers: a race");
}

std::string AccessRecord::Store(bool atomic) {
  Enter();
  const auto thread = static_cast<int>(Block::Current().thread());
  const bool initialised = written_ >= Block::Current().first_interval();
  written_ = interval_;
  std::string finding;
  if (atomic && !initialised) finding = "which no thread of the block has written";
  if (const int reader = OtherReader(thread); reader != kNobody)
    finding = Cat("writes it, and thread ", reader, " reads it, between the same two barriers: a race");
  if (writer_ == kNobody || writer_ == thread) {
    atomic_ = writer_ == thread ? atomic_ && atomic : atomic;
    writer_ = thread;
    return finding;
  }
  if (atomic && atomic_) {
    writer_ = kAtomics;
    return finding;
  }
  const std::string others = writer_ == kAtomics ? std::string("others update") : Cat("thread ", writer_, " writes");
  atomic_ = false;
  writer_ = thread;
  return Cat("writes it, and ", others, " it, between the same two barriers: a race");
}

std::string AccessRecord::Write() { return Store(false); }
std::string AccessRecord::Update() { return Store(true); }

}  // namespace moe::emulation
