// Eight parameters at a time: AVX2 and FMA.
#include "kernel.hpp"

#include <immintrin.h>

namespace lohan::adam {
namespace {

struct Avx2 {
  using Register = __m256;
  static constexpr std::size_t width = 8;
  static constexpr bool streams = true;

  static Register broadcast(float x) { return _mm256_set1_ps(x); }
  static Register load(const float *source) { return _mm256_loadu_ps(source); }
  static Register load(const BFloat16 *source) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i *>(source));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static void store(float *target, Register x) { _mm256_storeu_ps(target, x); }
  static void store(BFloat16 *target, Register x) { _mm_storeu_si128(reinterpret_cast<__m128i *>(target), rounded(x)); }
  static void stream(float *target, Register x) { _mm256_stream_ps(target, x); }
  static void stream(BFloat16 *target, Register x) {
    _mm_stream_si128(reinterpret_cast<__m128i *>(target), rounded(x));
  }
  static void fence() { _mm_sfence(); }
  static Register add(Register a, Register b) { return _mm256_add_ps(a, b); }
  static Register subtract(Register a, Register b) { return _mm256_sub_ps(a, b); }
  static Register multiply(Register a, Register b) { return _mm256_mul_ps(a, b); }
  static Register divide(Register a, Register b) { return _mm256_div_ps(a, b); }
  static Register square_root(Register x) { return _mm256_sqrt_ps(x); }
  static Register fused_multiply_add(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
  static Register canonical(Register x) {
    return _mm256_blendv_ps(x, _mm256_set1_ps(__builtin_nanf("")), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }

private:
  // As in the scalar path.
  static __m128i rounded(Register x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i carried = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i upper = _mm256_srli_epi32(carried, 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }
};

} // namespace

void update_avx2(const Slice &slice, const Coefficients &coefficients) { update<Avx2>(slice, coefficients); }

} // namespace lohan::adam
