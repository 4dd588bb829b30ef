// The AdamW update, written once over a vector type V; each SIMD path's translation unit includes it with its own V.
//
// [Note: one definition per path]
// The paths are compiled with different instruction sets. A function with external linkage that two of them emit would
// be merged by the linker, and a processor without AVX-512 could end up in the AVX-512 copy. So everything here is in
// an unnamed namespace, and nothing from the standard library is called except what the scalar path supplies itself.
//
// [Note: the same bits on every path]
// Each operation below is correctly rounded (IEEE 754: multiply, add, divide, square root, fused multiply-add), acts on
// one element, and occurs in the same place on every path; the build forbids the compiler to fuse others
// (-ffp-contract=off). Subnormals are kept (updater.cpp). A NaN's payload would depend on operand order,
// so every NaN that is written is the canonical one. Hence results do not depend on path, threads or chunking.
//
// Fused multiply-adds are where torch's lerp and addcmul kernels have them.
#pragma once

#include "adamw.hpp"

namespace lohan::adam {
namespace {

template <class V> struct Constants {
  typename V::Register gradient_factor, decay, lerp_weight, beta2, one_minus_beta2, root_bias_correction2, eps,
      negative_step_size;
  bool lerp_from_gradient;

  explicit Constants(const Coefficients &c)
      : gradient_factor(V::broadcast(c.gradient_factor)), decay(V::broadcast(c.decay)),
        lerp_weight(V::broadcast(c.lerp_weight)), beta2(V::broadcast(c.beta2)),
        one_minus_beta2(V::broadcast(c.one_minus_beta2)), root_bias_correction2(V::broadcast(c.root_bias_correction2)),
        eps(V::broadcast(c.eps)), negative_step_size(V::broadcast(c.negative_step_size)),
        lerp_from_gradient(c.lerp_from_gradient) {}
};

// How many parameters ahead of their use states and gradients are fetched: the processor's own prefetchers stop at
// every page. Measured beside 128 parameters, on Zen 4 and on 16 cores of a Xeon: 512 are up to 15 % faster, 256
// up to 6 %, 1024 and 2048 no better than 512.
constexpr std::size_t prefetch_distance = 512;

// The address may lie past the array's end: a prefetch never faults.
template <class T> inline void prefetch(const T *array) {
  const auto address = reinterpret_cast<std::uintptr_t>(array) + prefetch_distance * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void *>(address));
}

// Updates V::width parameters. Stream: the weights bypass the caches and must be aligned for it.
template <class V, bool Stream, class Gradient, class Weight>
inline void update_vector(const Constants<V> &c, float *master, float *exp_avg, float *exp_avg_sq,
                          const Gradient *gradient, Weight *weights) {
  // All loads come before all stores. The arrays often begin at the same offset into a page, and a load that follows a
  // store with the same low address bits waits until the processor knows that the two do not overlap: measured 20 %
  // slower on Zen 4.
  const auto old_master = V::load(master);
  const auto old_average = V::load(exp_avg);
  const auto old_square = V::load(exp_avg_sq);
  const auto g = V::multiply(V::load(gradient), c.gradient_factor);

  const auto base = c.lerp_from_gradient ? g : old_average;
  const auto average = V::fused_multiply_add(c.lerp_weight, V::subtract(g, old_average), base);
  const auto square = V::fused_multiply_add(V::multiply(c.one_minus_beta2, g), g, V::multiply(old_square, c.beta2));
  const auto root = V::divide(V::square_root(square), c.root_bias_correction2);
  const auto step = V::divide(V::multiply(c.negative_step_size, average), V::add(root, c.eps));
  const auto updated = V::canonical(V::add(V::multiply(old_master, c.decay), step));

  V::store(exp_avg, V::canonical(average));
  V::store(exp_avg_sq, V::canonical(square));
  V::store(master, updated);
  if constexpr (Stream) {
    V::stream(weights, updated);
  } else {
    V::store(weights, updated);
  }
}

// The last `count` < V::width parameters: through zero-padded copies, so that they meet the same instructions as the
// rest.
template <class V, class Gradient, class Weight>
inline void update_tail(const Constants<V> &c, float *master, float *exp_avg, float *exp_avg_sq,
                        const Gradient *gradient, Weight *weights, std::size_t count) {
  float padded_master[V::width] = {}, padded_average[V::width] = {}, padded_square[V::width] = {};
  Gradient padded_gradient[V::width] = {};
  Weight padded_weights[V::width] = {};
  for (std::size_t i = 0; i < count; ++i) {
    padded_master[i] = master[i];
    padded_average[i] = exp_avg[i];
    padded_square[i] = exp_avg_sq[i];
    padded_gradient[i] = gradient[i];
  }
  update_vector<V, false>(c, padded_master, padded_average, padded_square, padded_gradient, padded_weights);
  for (std::size_t i = 0; i < count; ++i) {
    master[i] = padded_master[i];
    exp_avg[i] = padded_average[i];
    exp_avg_sq[i] = padded_square[i];
    weights[i] = padded_weights[i];
  }
}

template <class V, bool Stream, class Gradient, class Weight>
void update_typed(const Slice &slice, const Coefficients &coefficients) {
  const Constants<V> c(coefficients);
  // Copied out: for all that the compiler knows, a store to the arrays could change the slice.
  const std::size_t length = slice.length;
  float *const master = slice.master, *const exp_avg = slice.exp_avg, *const exp_avg_sq = slice.exp_avg_sq;
  const auto *const gradient = static_cast<const Gradient *>(slice.gradient);
  auto *const weights = static_cast<Weight *>(slice.weights);
  std::size_t i = 0;
  for (; i + V::width <= length; i += V::width) {
    if constexpr (V::width > 1) {
      prefetch(master + i);
      prefetch(exp_avg + i);
      prefetch(exp_avg_sq + i);
      prefetch(gradient + i);
    }
    update_vector<V, Stream>(c, master + i, exp_avg + i, exp_avg_sq + i, gradient + i, weights + i);
  }
  if (i < length) {
    update_tail(c, master + i, exp_avg + i, exp_avg_sq + i, gradient + i, weights + i, length - i);
  }
  if constexpr (Stream) {
    V::fence(); // streamed stores are weakly ordered: make them visible before the caller is told
  }
}

// Weights bypass the caches, unless their lines are there already: where they take the gradients' place, the line has
// been read, and its second half is still to be. (Streaming them there too: 5 to 7 % slower on the Xeon.)
template <class V, class Gradient, class Weight> void update_streaming(const Slice &s, const Coefficients &c) {
  constexpr std::size_t vector_bytes = V::width * sizeof(Weight);
  if (V::streams && s.weights != s.gradient && reinterpret_cast<std::uintptr_t>(s.weights) % vector_bytes == 0) {
    update_typed<V, V::streams, Gradient, Weight>(s, c);
  } else {
    update_typed<V, false, Gradient, Weight>(s, c);
  }
}

template <class V, class Gradient> void update_weights(const Slice &s, const Coefficients &c) {
  if (s.weights_dtype == DType::bfloat16) {
    update_streaming<V, Gradient, BFloat16>(s, c);
  } else {
    update_streaming<V, Gradient, float>(s, c);
  }
}

template <class V> void update(const Slice &s, const Coefficients &c) {
  if (s.gradient_dtype == DType::bfloat16) {
    update_weights<V, BFloat16>(s, c);
  } else {
    update_weights<V, float>(s, c);
  }
}

} // namespace
} // namespace lohan::adam
