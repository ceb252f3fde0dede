// Amounts as people write and read them: bytes, rates, counts. All results that a tool reads are plain numbers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/status.h"

namespace moe {

/// 46702792704 → "46,702,792,704".
std::string WithSeparators(std::uint64_t value);
/// 46702792704 → "46.70 B"; K, M, B and T stand for powers of a thousand.
std::string ShortCount(double value);
/// 85899345920 → "80.00 GiB"; powers of 1024.
std::string ShortBytes(double bytes);
/// `digits` significant ones, without an exponent between 1e-3 and 1e7: 12.3, 0.00456.
std::string Significant(double value, int digits = 4);

/// "80GiB", "24GB", "1.5 TiB", "1000": a number and B, kB, MB, GB, TB, PB (powers of 1000) or KiB … PiB (of 1024).
/// INVALID_ARGUMENT that repeats `text` unless it is at least one byte and less than 2^63.
Result<std::uint64_t> ParseBytes(std::string_view text);
/// ParseBytes, with or without "/s" at the end.
Result<double> ParseBandwidth(std::string_view text);
/// "989.4T", "312 TFLOPS", "1e12": a number, k, M, G, T or P, and then perhaps FLOPS or FLOP/s.
Result<double> ParseFlops(std::string_view text);

}  // namespace moe
