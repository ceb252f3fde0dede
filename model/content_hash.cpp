#include "model/content_hash.h"

#include <xxhash.h>

#include <array>
#include <iomanip>
#include <sstream>
#include <utility>

#include "core/check.h"

namespace moe {

struct ContentHash::State {
  State() : xxh(XXH3_createState()) {
    MOE_CHECK(xxh != nullptr, "out of memory");
    XXH3_64bits_reset(xxh);
  }
  ~State() { XXH3_freeState(xxh); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  XXH3_state_t* xxh;  // of an alignment that only its library knows
};

ContentHash::ContentHash() : state_(std::make_unique<State>()) {}
ContentHash::ContentHash(ContentHash&&) noexcept = default;
ContentHash& ContentHash::operator=(ContentHash&&) noexcept = default;
ContentHash::~ContentHash() = default;

void ContentHash::AddBytes(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_->xxh, bytes.data(), bytes.size());
}

void ContentHash::AddNumber(std::uint64_t number) {
  std::array<std::byte, sizeof(number)> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(number >> (8 * i));
  AddBytes(bytes);
}

void ContentHash::AddText(std::string_view text) {
  AddNumber(text.size());
  AddBytes(std::as_bytes(std::span(text)));
}

std::uint64_t ContentHash::value() const { return XXH3_64bits_digest(state_->xxh); }

std::string Hex(std::uint64_t hash) {
  std::ostringstream out;
  out << std::hex << std::setw(16) << std::setfill('0') << hash;
  return std::move(out).str();
}

}  // namespace moe
