// Sixteen parameters at a time: AVX-512F. (AVX512_BF16's own conversion is not used: it flushes subnormals to zero.)
#include "kernel.hpp"

#include <immintrin.h>

namespace lohan::adam {
namespace {

struct Avx512 {
  using Register = __m512;
  static constexpr std::size_t width = 16;
  static constexpr bool streams = true;

  static Register broadcast(float x) { return _mm512_set1_ps(x); }
  static Register load(const float *source) { return _mm512_loadu_ps(source); }
  static Register load(const BFloat16 *source) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(source));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static void store(float *target, Register x) { _mm512_storeu_ps(target, x); }
  static void store(BFloat16 *target, Register x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(target), rounded(x));
  }
  static void stream(float *target, Register x) { _mm512_stream_ps(target, x); }
  static void stream(BFloat16 *target, Register x) {
    _mm256_stream_si256(reinterpret_cast<__m256i *>(target), rounded(x));
  }
  static void fence() { _mm_sfence(); }
  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register subtract(Register a, Register b) { return _mm512_sub_ps(a, b); }
  static Register multiply(Register a, Register b) { return _mm512_mul_ps(a, b); }
  static Register divide(Register a, Register b) { return _mm512_div_ps(a, b); }
  static Register square_root(Register x) { return _mm512_sqrt_ps(x); }
  static Register fused_multiply_add(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  static Register canonical(Register x) {
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_mov_ps(x, nan, _mm512_set1_ps(__builtin_nanf("")));
  }

private:
  // As in the scalar path.
  static __m256i rounded(Register x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i carried = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(carried, 16));
  }
};

} // namespace

void update_avx512(const Slice &slice, const Coefficients &coefficients) { update<Avx512>(slice, coefficients); }

} // namespace lohan::adam
