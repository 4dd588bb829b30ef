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

// Where an update reads and writes, from one parameter on.
template <class Gradient, class Weight> struct Places {
  const float *master, *exp_avg, *exp_avg_sq;
  const Gradient *gradient;
  float *new_master, *new_exp_avg, *new_exp_avg_sq;
  Weight *weights;

  static Places of(const Slice &s) {
    return {s.master,     s.exp_avg,     s.exp_avg_sq,     static_cast<const Gradient *>(s.gradient),
            s.new_master, s.new_exp_avg, s.new_exp_avg_sq, static_cast<Weight *>(s.weights)};
  }
  Places at(std::size_t i) const {
    return {master + i,     exp_avg + i,     exp_avg_sq + i,     gradient + i,
            new_master + i, new_exp_avg + i, new_exp_avg_sq + i, weights + i};
  }
};

// What bypasses the caches on its way out; it must be aligned for that.
enum class Streams { nothing, weights, everything };

template <class V, bool Stream, class T> inline void put(T *target, typename V::Register x) {
  if constexpr (Stream) {
    V::stream(target, x);
  } else {
    V::store(target, x);
  }
}

// Updates V::width parameters.
template <class V, Streams streams, class Gradient, class Weight>
inline void update_vector(const Constants<V> &c, const Places<Gradient, Weight> &p) {
  // All loads come before all stores. The arrays often begin at the same offset into a page, and a load that follows a
  // store with the same low address bits waits until the processor knows that the two do not overlap: measured 20 %
  // slower on Zen 4.
  const auto old_master = V::load(p.master);
  const auto old_average = V::load(p.exp_avg);
  const auto old_square = V::load(p.exp_avg_sq);
  const auto g = V::multiply(V::load(p.gradient), c.gradient_factor);

  const auto base = c.lerp_from_gradient ? g : old_average;
  const auto average = V::fused_multiply_add(c.lerp_weight, V::subtract(g, old_average), base);
  const auto square = V::fused_multiply_add(V::multiply(c.one_minus_beta2, g), g, V::multiply(old_square, c.beta2));
  const auto root = V::divide(V::square_root(square), c.root_bias_correction2);
  const auto step = V::divide(V::multiply(c.negative_step_size, average), V::add(root, c.eps));
  const auto updated = V::canonical(V::add(V::multiply(old_master, c.decay), step));

  constexpr bool states = streams == Streams::everything;
  put<V, states>(p.new_exp_avg, V::canonical(average));
  put<V, states>(p.new_exp_avg_sq, V::canonical(square));
  put<V, states>(p.new_master, updated);
  put<V, streams != Streams::nothing>(p.weights, updated);
}

// The last `count` < V::width parameters: through zero-padded copies, so that they meet the same instructions as the
// rest.
template <class V, class Gradient, class Weight>
inline void update_tail(const Constants<V> &c, const Places<Gradient, Weight> &p, std::size_t count) {
  float padded_master[V::width] = {}, padded_average[V::width] = {}, padded_square[V::width] = {};
  Gradient padded_gradient[V::width] = {};
  Weight padded_weights[V::width] = {};
  for (std::size_t i = 0; i < count; ++i) {
    padded_master[i] = p.master[i];
    padded_average[i] = p.exp_avg[i];
    padded_square[i] = p.exp_avg_sq[i];
    padded_gradient[i] = p.gradient[i];
  }
  const Places<Gradient, Weight> padded{padded_master, padded_average, padded_square, padded_gradient,
                                        padded_master, padded_average, padded_square, padded_weights};
  update_vector<V, Streams::nothing>(c, padded);
  for (std::size_t i = 0; i < count; ++i) {
    p.new_master[i] = padded_master[i];
    p.new_exp_avg[i] = padded_average[i];
    p.new_exp_avg_sq[i] = padded_square[i];
    p.weights[i] = padded_weights[i];
  }
}

template <class V, Streams streams, class Gradient, class Weight>
void update_typed(const Slice &slice, const Coefficients &coefficients) {
  const Constants<V> c(coefficients);
  // Copied out: for all that the compiler knows, a store to the arrays could change the slice.
  const std::size_t length = slice.length;
  const auto places = Places<Gradient, Weight>::of(slice);
  std::size_t i = 0;
  for (; i + V::width <= length; i += V::width) {
    const Places<Gradient, Weight> here = places.at(i);
    if constexpr (V::width > 1) {
      prefetch(here.master);
      prefetch(here.exp_avg);
      prefetch(here.exp_avg_sq);
      prefetch(here.gradient);
    }
    update_vector<V, streams>(c, here);
  }
  if (i < length) {
    update_tail(c, places.at(i), length - i);
  }
  if constexpr (streams != Streams::nothing) {
    V::fence(); // streamed stores are weakly ordered: make them visible before the caller is told
  }
}

template <class V> inline bool aligned(const void *address, std::size_t value_bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % (V::width * value_bytes) == 0;
}

// What is written bypasses the caches, unless its lines are there already: states are updated in place, or weights take
// the gradients' place, the line has been read, and its second half is still to be. (Streaming weights there too: 5 to
// 7 % slower on the Xeon.)
template <class V, class Gradient, class Weight> void update_streaming(const Slice &s, const Coefficients &c) {
  if constexpr (V::streams) {
    const bool states = s.new_master != s.master && aligned<V>(s.new_master, sizeof(float)) &&
                        aligned<V>(s.new_exp_avg, sizeof(float)) && aligned<V>(s.new_exp_avg_sq, sizeof(float));
    const bool weights = s.weights != s.gradient && aligned<V>(s.weights, sizeof(Weight));
    if (weights && states) {
      update_typed<V, Streams::everything, Gradient, Weight>(s, c);
      return;
    }
    if (weights) {
      update_typed<V, Streams::weights, Gradient, Weight>(s, c);
      return;
    }
  }
  update_typed<V, Streams::nothing, Gradient, Weight>(s, c);
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
