#include "adamw.hpp"

#include <cmath>
#include <stdexcept>

namespace lohan::adam {

namespace {

std::size_t size_of(DType dtype) { return dtype == DType::float32 ? sizeof(float) : sizeof(BFloat16); }

} // namespace

Slice Slice::part(std::size_t offset, std::size_t part_length) const {
  Slice slice = *this;
  slice.master += offset;
  slice.exp_avg += offset;
  slice.exp_avg_sq += offset;
  slice.new_master += offset;
  slice.new_exp_avg += offset;
  slice.new_exp_avg_sq += offset;
  slice.gradient = static_cast<const char *>(gradient) + offset * size_of(gradient_dtype);
  slice.weights = static_cast<char *>(weights) + offset * size_of(weights_dtype);
  slice.length = part_length;
  return slice;
}

Coefficients Coefficients::of(const Hyperparameters &h) {
  if (h.step < 1) {
    throw std::invalid_argument("step counts from 1");
  }
  const auto step = static_cast<double>(h.step);
  const double bias_correction1 = 1.0 - std::pow(h.beta1, step);
  const double bias_correction2 = 1.0 - std::pow(h.beta2, step);
  const auto weight = static_cast<float>(1.0 - h.beta1);
  const bool from_gradient = weight >= 0.5F;

  Coefficients c{};
  c.gradient_factor = static_cast<float>(h.gradient_factor);
  c.decay = static_cast<float>(1.0 - h.lr * h.weight_decay);
  c.lerp_weight = from_gradient ? weight - 1.0F : weight;
  c.lerp_from_gradient = from_gradient;
  c.beta2 = static_cast<float>(h.beta2);
  c.one_minus_beta2 = static_cast<float>(1.0 - h.beta2);
  c.root_bias_correction2 = static_cast<float>(std::sqrt(bias_correction2));
  c.eps = static_cast<float>(h.eps);
  c.negative_step_size = static_cast<float>(-(h.lr / bias_correction1));
  return c;
}

} // namespace lohan::adam
