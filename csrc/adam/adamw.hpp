// What one AdamW update works on: the slice of memory, and the scalars of the step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lohan::adam {

enum class DType : std::uint8_t { float32, bfloat16 };

// bfloat16 in memory: the upper half of a float's bits. A type of its own, so that no integer is taken for one.
struct BFloat16 {
  std::uint16_t bits;
};

// n parameters, each array of `length` elements. Arrays must not overlap, but that all new states may be in the old
// ones' memory, and weights in the gradients', if both are of one type: each is read before anything is written there.
struct Slice {
  const float *master;
  const float *exp_avg;
  const float *exp_avg_sq;
  const void *gradient;
  float *new_master;
  float *new_exp_avg;
  float *new_exp_avg_sq;
  void *weights;
  DType gradient_dtype;
  DType weights_dtype;
  std::size_t length;

  Slice part(std::size_t offset, std::size_t part_length) const;
};

struct Hyperparameters {
  std::int64_t step; // counts from 1
  double lr;
  double beta1;
  double beta2;
  double eps;
  double weight_decay;
  double gradient_factor;
};

// The scalars of a step, in single precision. They are derived in double and rounded once, as torch does it, and every
// SIMD path uses these same values.
struct Coefficients {
  float gradient_factor;
  float decay;       // 1 - lr * weight_decay
  float lerp_weight; // see lerp_from_gradient
  float beta2;
  float one_minus_beta2;
  float root_bias_correction2;
  float eps;
  float negative_step_size; // -lr / bias_correction1
  // exp_avg + w * (g - exp_avg) loses accuracy for w near 1; torch's lerp then computes g + (w - 1) * (g - exp_avg).
  // lerp_weight is w or w - 1 accordingly.
  bool lerp_from_gradient;

  // Throws std::invalid_argument when step < 1: the bias corrections would divide by zero.
  static Coefficients of(const Hyperparameters &hyperparameters);
};

using Kernel = void (*)(const Slice &, const Coefficients &);

// One kernel per SIMD path, each in a translation unit of its own; call it only on a processor that has the path.
void update_scalar(const Slice &slice, const Coefficients &coefficients);
void update_avx2(const Slice &slice, const Coefficients &coefficients);
void update_avx512(const Slice &slice, const Coefficients &coefficients);

} // namespace lohan::adam
