// A 64-bit hash that tells contents apart: checkpoints, and what is kept of them on a disk. Against accidents, not
// against somebody who looks for two contents of one hash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace moe {

/// XXH3 of everything that is added, in that order; the same on every machine.
class ContentHash {
 public:
  ContentHash();
  ContentHash(ContentHash&&) noexcept;
  ContentHash& operator=(ContentHash&&) noexcept;
  ~ContentHash();

  /// As they are: in whatever pieces they come, the hash is that of all of them.
  void AddBytes(std::span<const std::byte> bytes);
  /// Little-endian.
  void AddNumber(std::uint64_t number);
  /// Its length too, so that two texts do not run into one another.
  void AddText(std::string_view text);

  std::uint64_t value() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// 16 digits.
std::string Hex(std::uint64_t hash);

}  // namespace moe
