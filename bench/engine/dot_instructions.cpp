#include "bench/engine/dot_instructions.h"

#include <algorithm>
#include <array>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "bench/engine/roof_kernels.h"
#include "kernels/amx.h"

namespace moe {
namespace {

// Chains that do not wait for one another: two units with a latency of four or five cycles need eight to ten.
constexpr int kChains = 12;

#if defined(__x86_64__)

// A function of its own for each instruction, since it can only use the instructions of its own target. A round makes
// STEP(a, x, y) of each chain `a`, with equal factors `x` and `y`; OPERATIONS are those of one step.
#define MOE_DOT_LOOP(NAME, TARGET, VECTOR, OPERATIONS, MAKE, STEP, REDUCE)                \
  __attribute__((target(TARGET))) double NAME(std::size_t rounds, float& sink) {          \
    VECTOR a[kChains];                                                                    \
    _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) a[i] = MAKE(i + 1);        \
    const VECTOR x = MAKE(1), y = MAKE(2);                                                \
    for (std::size_t round = 0; round < rounds; ++round) {                                \
      _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) a[i] = STEP(a[i], x, y); \
    }                                                                                     \
    float sum = 0;                                                                        \
    _Pragma("GCC unroll 12") for (int i = 0; i < kChains; ++i) sum += REDUCE(a[i]);       \
    sink = sum;                                                                           \
    return static_cast<double>(rounds) * kChains * (OPERATIONS);                          \
  }

// Factors that no compiler can know: otherwise it would fold the loop.
#define MOE_FLOATS_512(I) _mm512_set1_ps(sink* static_cast<float>(I) * 1e-3f)
#define MOE_FLOATS_256(I) _mm256_set1_ps(sink* static_cast<float>(I) * 1e-3f)
#define MOE_BYTES_512(I) _mm512_set1_epi8(static_cast<char>(static_cast<int>(sink) + (I)))
#define MOE_BYTES_256(I) _mm256_set1_epi8(static_cast<char>(static_cast<int>(sink) + (I)))

#define MOE_FMA_512(A, X, Y) _mm512_fmadd_ps(A, X, Y)
#define MOE_FMA_256(A, X, Y) _mm256_fmadd_ps(A, X, Y)
#define MOE_VNNI_512(A, X, Y) _mm512_dpbusd_epi32(A, X, Y)
#define MOE_VNNI_256(A, X, Y) _mm256_dpbusd_avx_epi32(A, X, Y)
// Unsigned times signed bytes to sums of two in 16 bits, then to sums of four in 32: three instructions for one.
#define MOE_MADD_512(A, X, Y) \
  _mm512_add_epi32(A, _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_xor_si512(X, A), Y), _mm512_set1_epi16(1)))
#define MOE_MADD_256(A, X, Y) \
  _mm256_add_epi32(A, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_xor_si256(X, A), Y), _mm256_set1_epi16(1)))
#define MOE_BF16_512(A, X, Y) \
  _mm512_dpbf16_ps(A, reinterpret_cast<const __m512bh&>(X), reinterpret_cast<const __m512bh&>(Y))

#define MOE_FIRST_FLOAT_512(A) _mm512_cvtss_f32(A)
#define MOE_FIRST_FLOAT_256(A) _mm256_cvtss_f32(A)
#define MOE_FIRST_INT_512(A) static_cast<float>(_mm512_cvtsi512_si32(A))
#define MOE_FIRST_INT_256(A) static_cast<float>(_mm_cvtsi128_si32(_mm256_castsi256_si128(A)))

MOE_DOT_LOOP(Fp32Avx512, "avx512f", __m512, 16 * 2, MOE_FLOATS_512, MOE_FMA_512, MOE_FIRST_FLOAT_512)
MOE_DOT_LOOP(Fp32Avx2, "avx2,fma", __m256, 8 * 2, MOE_FLOATS_256, MOE_FMA_256, MOE_FIRST_FLOAT_256)
MOE_DOT_LOOP(Bf16Avx512, "avx512f,avx512bf16", __m512, 32 * 2, MOE_FLOATS_512, MOE_BF16_512, MOE_FIRST_FLOAT_512)
MOE_DOT_LOOP(Int8Vnni512, "avx512f,avx512bw,avx512vnni", __m512i, 64 * 2, MOE_BYTES_512, MOE_VNNI_512,
             MOE_FIRST_INT_512)
MOE_DOT_LOOP(Int8Vnni256, "avx2,avxvnni", __m256i, 32 * 2, MOE_BYTES_256, MOE_VNNI_256, MOE_FIRST_INT_256)
MOE_DOT_LOOP(Int8Avx512, "avx512f,avx512bw", __m512i, 64 * 2, MOE_BYTES_512, MOE_MADD_512, MOE_FIRST_INT_512)
MOE_DOT_LOOP(Int8Avx2, "avx2", __m256i, 32 * 2, MOE_BYTES_256, MOE_MADD_256, MOE_FIRST_INT_256)

// Tiles of 16 rows and 16 columns, 64 factors for each; as many sums as keep one unit with a latency of 52 cycles,
// which takes 16 for each, busy.
double Int8Amx(std::size_t rounds, float& sink) {
  constexpr int kSums = 4;
  constexpr double kOperations = kSums * 16.0 * 16 * 64 * 2;
  AmxConfiguration shapes;
  for (int tile = 0; tile < kSums + 2; ++tile) shapes.Shape(tile, 16, 64);
  const AmxRegisters registers(shapes);
  for (std::size_t round = 0; round < rounds; ++round) {
    asm volatile(
        "tdpbsud %tmm5, %tmm4, %tmm0\n\t"
        "tdpbsud %tmm5, %tmm4, %tmm1\n\t"
        "tdpbsud %tmm5, %tmm4, %tmm2\n\t"
        "tdpbsud %tmm5, %tmm4, %tmm3");
  }
  sink = 0;
  return static_cast<double>(rounds) * kOperations;
}

#define MOE_HAS(NAME, CONDITION) \
  bool NAME() { return CONDITION; }
MOE_HAS(HasAvx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
MOE_HAS(HasAvx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
MOE_HAS(HasBf16, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16"))
MOE_HAS(HasVnni512, HasAvx512() && __builtin_cpu_supports("avx512vnni"))
MOE_HAS(HasVnni256, HasAvx2() && __builtin_cpu_supports("avxvnni"))

bool HasNothingWider() { return !HasAvx2(); }

constexpr std::array kInstructions = {
    DotInstruction{"fp32", "avx512", HasAvx512, Fp32Avx512},
    DotInstruction{"fp32", "avx2", HasAvx2, Fp32Avx2},
    DotInstruction{"fp32", "portable", HasNothingWider, MultiplyAdd},
    DotInstruction{"bf16", "avx512_bf16", HasBf16, Bf16Avx512},
    DotInstruction{"int8", "amx_int8", AmxIsUsable, Int8Amx},
    DotInstruction{"int8", "avx512_vnni", HasVnni512, Int8Vnni512},
    DotInstruction{"int8", "avx_vnni", HasVnni256, Int8Vnni256},
    DotInstruction{"int8", "avx512", HasAvx512, Int8Avx512},
    DotInstruction{"int8", "avx2", HasAvx2, Int8Avx2},
};

#else

constexpr std::array kInstructions = {DotInstruction{"fp32", "portable", [] { return true; }, MultiplyAdd}};

#endif

}  // namespace

std::span<const DotInstruction> DotInstructions() { return kInstructions; }

const DotInstruction* InstructionOf(std::string_view kernels, std::string_view format) {
  // Their names are those of Highway's targets; AVX3_DL is AVX3 with VNNI and more. "amx" is that with tiles. Kernels
  // for AVX2 leave AVX-VNNI be.
  std::string_view set = kernels;
  if (kernels == "avx3") set = "avx512";
  if (kernels == "avx3_dl") set = format == "int8" ? "avx512_vnni" : "avx512";
  if (kernels == "amx") set = format == "int8" ? "amx_int8" : "avx512";
  const auto found = std::ranges::find_if(kInstructions, [&](const DotInstruction& instruction) {
    return instruction.format == format && instruction.instruction_set == set && instruction.available();
  });
  return found == kInstructions.end() ? nullptr : &*found;
}

}  // namespace moe
