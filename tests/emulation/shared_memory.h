// Shared memory of an emulated block: an array that knows, for each of its elements, which threads have written and
// read it since the last barrier, and complains where the outcome hangs on which of two threads comes first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "core/text.h"
#include "tests/emulation/block.h"

namespace moe::emulation {

/// Who has used one element in the interval between two barriers.
class AccessRecord {
 public:
  /// The finding, empty if there is none.
  std::string Read();
  std::string Write();
  /// Atomic operations of several threads do not race with one another.
  std::string Update();

 private:
  static constexpr int kNobody = -1;
  static constexpr int kAtomics = -2;  // several threads, all by atomic operations

  void Enter();
  std::string Store(bool atomic);
  void NoteReader(int thread);
  /// A reader other than `thread`.
  int OtherReader(int thread) const;

  std::uint64_t interval_ = 0;  // that the other members are about
  std::uint64_t written_ = 0;   // interval of the last write
  int writer_ = kNobody;
  bool atomic_ = false;                  // the writer's was an atomic operation
  int readers_[2] = {kNobody, kNobody};  // two different ones, if there are two
};

/// Elements at `values`, of static or dynamic shared memory.
template <typename T>
class SharedView {
 public:
  static_assert(std::is_trivially_copyable_v<T>);
  class Element {
   public:
    Element(const SharedView& view, unsigned index) : view_(view), index_(index) {}
    Element(const Element&) = delete;
    operator T() const { return view_.Read(index_); }                     // NOLINT(google-explicit-constructor)
    void operator=(const T& value) const { view_.Write(index_, value); }  // NOLINT(misc-unconventional-assign-operator)
    void operator=(const Element& other) const { view_.Write(index_, T(other)); }  // NOLINT

   private:
    const SharedView& view_;
    unsigned index_;
  };

  SharedView(const char* name, T* values, AccessRecord* records, std::size_t size)
      : name_(name), values_(values), records_(records), size_(size) {}

  Element operator[](unsigned index) const { return {*this, index}; }

  void Add(unsigned index, T value) const {
    if (!Inside(index)) return;
    Tell(index, records_[index].Update());
    values_[index] += value;
  }

 private:
  T Read(unsigned index) const {
    if (!Inside(index)) return {};
    Tell(index, records_[index].Read());
    return values_[index];
  }
  void Write(unsigned index, const T& value) const {
    if (!Inside(index)) return;
    Tell(index, records_[index].Write());
    values_[index] = value;
  }
  bool Inside(unsigned index) const {
    if (index < size_) return true;
    Block::Current().Report(Cat("uses shared ", name_, "[", index, "] of ", size_, " elements"));
    return false;
  }
  void Tell(unsigned index, const std::string& finding) const {
    if (!finding.empty()) Block::Current().Report(Cat("uses shared ", name_, "[", index, "], ", finding));
  }

  const char* name_;
  T* values_;
  AccessRecord* records_;
  std::size_t size_;
};

/// A static array: one for all blocks of this thread, since they run one after the other; records tell them apart.
template <typename T, std::size_t kSize>
class SharedArray : public SharedView<T> {
 public:
  explicit SharedArray(const char* name) : SharedView<T>(name, values_, records_, kSize) {}

 private:
  T values_[kSize] = {};
  AccessRecord records_[kSize];
};

/// The launch's dynamic shared memory as T, from element `first` on. A kernel asks for it in one type.
template <typename T>
SharedView<T> DynamicSharedView(std::size_t first) {
  static_assert(sizeof(T) >= sizeof(std::uint32_t), "the records are one for each word");
  static thread_local std::vector<AccessRecord> records(Block::kMaxSharedBytes / sizeof(std::uint32_t));
  Block& block = Block::Current();
  const std::size_t size = block.dynamic_bytes() / sizeof(T);
  first = std::min(first, size);
  return {"(dynamic)", reinterpret_cast<T*>(block.dynamic_memory()) + first, records.data() + first, size - first};
}

}  // namespace moe::emulation
