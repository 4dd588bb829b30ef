// The path of every processor, one parameter at a time; the meaning of the others.
#include "kernel.hpp"

#include <cmath>
#include <cstring>

namespace lohan::adam {
namespace {

struct Scalar {
  using Register = float;
  static constexpr std::size_t width = 1;
  static constexpr bool streams = false;

  static Register broadcast(float x) { return x; }
  static Register load(const float *source) { return *source; }
  static Register load(const BFloat16 *source) {
    const std::uint32_t bits = static_cast<std::uint32_t>(source->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }
  static void store(float *target, Register x) { *target = x; }
  // Round to nearest even. x is no NaN but the canonical one, so the carry cannot turn a NaN into an infinity.
  static void store(BFloat16 *target, Register x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    target->bits = static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
  }
  static Register add(Register a, Register b) { return a + b; }
  static Register subtract(Register a, Register b) { return a - b; }
  static Register multiply(Register a, Register b) { return a * b; }
  static Register divide(Register a, Register b) { return a / b; }
  static Register square_root(Register x) { return std::sqrt(x); }
  static Register fused_multiply_add(Register a, Register b, Register c) { return std::fma(a, b, c); }
  static Register canonical(Register x) { return x == x ? x : __builtin_nanf(""); }
};

} // namespace

void update_scalar(const Slice &slice, const Coefficients &coefficients) { update<Scalar>(slice, coefficients); }

} // namespace lohan::adam
