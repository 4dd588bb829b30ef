// Unit tests of the native update: exact bits, exact bounds, the thread pool. Run them with the sanitizers on; every
// array lies in a heap block of its exact size, so that one element too far is caught.
#include "updater.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

using namespace lohan::adam;

namespace {

#define CHECK(condition, ...)                                                                                          \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                             \
      std::fprintf(stderr, __VA_ARGS__);                                                                               \
      std::fputc('\n', stderr);                                                                                        \
      std::exit(1);                                                                                                    \
    }                                                                                                                  \
  } while (false)

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr std::uint32_t canonical_nan = 0x7FC00000;

// Round to nearest even by comparing what is cut off with one half.
std::uint16_t rounded(float x) {
  if (std::isnan(x)) {
    return canonical_nan >> 16;
  }
  const std::uint32_t bits = bits_of(x);
  const std::uint32_t kept = bits >> 16;
  const std::uint32_t cut = bits & 0xFFFFU;
  const bool up = cut > 0x8000U || (cut == 0x8000U && kept % 2 == 1);
  return static_cast<std::uint16_t>(kept + (up ? 1 : 0));
}

// The arrays of one update. `lead` elements before the slice misalign it.
struct Arrays {
  std::size_t length, lead;
  DType gradient_dtype, weights_dtype;
  std::vector<float> master, exp_avg, exp_avg_sq, gradient32, weights32;
  std::vector<BFloat16> gradient16, weights16;

  Arrays(std::size_t n, std::size_t lead_elements, DType gradient, DType weights)
      : length(n), lead(lead_elements), gradient_dtype(gradient), weights_dtype(weights) {
    const std::size_t size = lead + n;
    master.resize(size);
    exp_avg.resize(size);
    exp_avg_sq.resize(size);
    gradient32.resize(gradient == DType::float32 ? size : 0);
    gradient16.resize(gradient == DType::bfloat16 ? size : 0);
    weights32.resize(weights == DType::float32 ? size : 0);
    weights16.resize(weights == DType::bfloat16 ? size : 0);
  }

  void set_gradient(std::size_t i, float x) {
    if (gradient_dtype == DType::float32) {
      gradient32[i] = x;
    } else {
      gradient16[i].bits = rounded(x);
    }
  }

  float gradient(std::size_t i) const {
    return gradient_dtype == DType::float32 ? gradient32[i] : float_of(std::uint32_t{gradient16[i].bits} << 16);
  }

  Slice slice() {
    Slice s{};
    s.master = master.data() + lead;
    s.exp_avg = exp_avg.data() + lead;
    s.exp_avg_sq = exp_avg_sq.data() + lead;
    s.new_master = master.data() + lead;
    s.new_exp_avg = exp_avg.data() + lead;
    s.new_exp_avg_sq = exp_avg_sq.data() + lead;
    s.gradient_dtype = gradient_dtype;
    s.weights_dtype = weights_dtype;
    s.gradient = gradient_dtype == DType::float32 ? static_cast<const void *>(gradient32.data() + lead)
                                                  : static_cast<const void *>(gradient16.data() + lead);
    s.weights = weights_dtype == DType::float32 ? static_cast<void *>(weights32.data() + lead)
                                                : static_cast<void *>(weights16.data() + lead);
    s.length = length;
    return s;
  }
};

// Numbers as in training, with every kind of special value strewn in.
Arrays random_arrays(std::size_t n, std::size_t lead, DType gradient, DType weights) {
  Arrays a(n, lead, gradient, weights);
  std::mt19937 generator(static_cast<unsigned>(n));
  std::normal_distribution<float> normal;
  const float infinity = std::numeric_limits<float>::infinity();
  const float special[] = {0.0F,   -0.0F,   infinity, -infinity, std::nanf("1"), -std::nanf("2"),
                           1e-40F, -1e-30F, 1e30F,    -3e38F,    1e-20F,         1.17549435e-38F};
  for (std::size_t i = 0; i < n + lead; ++i) {
    a.master[i] = normal(generator);
    a.exp_avg[i] = normal(generator);
    a.exp_avg_sq[i] = std::fabs(normal(generator));
    a.set_gradient(i, generator() % 4 == 0 ? special[generator() % std::size(special)] : normal(generator));
    if (generator() % 16 == 0) {
      a.master[i] = special[generator() % std::size(special)];
      a.exp_avg[i] = special[generator() % std::size(special)];
    }
  }
  return a;
}

Hyperparameters hyperparameters(double beta1 = 0.9) { return {7, 1e-3, beta1, 0.999, 1e-8, 0.1, 0.37}; }

float canonical(float x) { return std::isnan(x) ? float_of(canonical_nan) : x; }

// torch.optim.AdamW, one parameter at a time, the constants rounded where torch rounds them.
void update_plainly(Arrays &a, const Hyperparameters &h) {
  const auto beta1_step = std::pow(h.beta1, static_cast<double>(h.step));
  const auto beta2_step = std::pow(h.beta2, static_cast<double>(h.step));
  const auto weight = static_cast<float>(1 - h.beta1);
  for (std::size_t i = a.lead; i < a.lead + a.length; ++i) {
    const float g = a.gradient(i) * static_cast<float>(h.gradient_factor);
    const float m = a.exp_avg[i];
    const float average = weight < 0.5F ? std::fma(weight, g - m, m) : std::fma(weight - 1, g - m, g);
    const float square =
        std::fma(static_cast<float>(1 - h.beta2) * g, g, a.exp_avg_sq[i] * static_cast<float>(h.beta2));
    const float denominator =
        std::sqrt(square) / static_cast<float>(std::sqrt(1 - beta2_step)) + static_cast<float>(h.eps);
    const float master = a.master[i] * static_cast<float>(1 - h.lr * h.weight_decay) +
                         static_cast<float>(-h.lr / (1 - beta1_step)) * average / denominator;
    a.exp_avg[i] = canonical(average);
    a.exp_avg_sq[i] = canonical(square);
    a.master[i] = canonical(master);
    if (a.weights_dtype == DType::float32) {
      a.weights32[i] = a.master[i];
    } else {
      a.weights16[i].bits = rounded(a.master[i]);
    }
  }
}

template <class T> bool same_bits(const std::vector<T> &a, const std::vector<T> &b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

void check_same(const Arrays &actual, const Arrays &expected, const char *what) {
  CHECK(same_bits(actual.master, expected.master), "%s, length %zu", what, expected.length);
  CHECK(same_bits(actual.exp_avg, expected.exp_avg), "%s, length %zu", what, expected.length);
  CHECK(same_bits(actual.exp_avg_sq, expected.exp_avg_sq), "%s, length %zu", what, expected.length);
  CHECK(same_bits(actual.weights32, expected.weights32), "%s, length %zu", what, expected.length);
  CHECK(same_bits(actual.weights16, expected.weights16), "%s, length %zu", what, expected.length);
  CHECK(same_bits(actual.gradient32, expected.gradient32), "%s, length %zu", what, expected.length);
  CHECK(same_bits(actual.gradient16, expected.gradient16), "%s, length %zu", what, expected.length);
}

void every_path_has_the_plain_bits() {
  std::vector<std::size_t> lengths{4097};
  for (std::size_t n = 0; n <= 67; ++n) {
    lengths.push_back(n);
  }
  for (const Path path : supported_paths()) {
    for (const DType gradient : {DType::float32, DType::bfloat16}) {
      for (const DType weights : {DType::float32, DType::bfloat16}) {
        for (const double beta1 : {0.9, 0.5, 0.0}) {
          for (const std::size_t lead : {std::size_t{0}, std::size_t{1}}) {
            for (const std::size_t n : lengths) {
              Arrays expected = random_arrays(n, lead, gradient, weights);
              Arrays actual = expected;
              update_plainly(expected, hyperparameters(beta1));
              kernel_of(path)(actual.slice(), Coefficients::of(hyperparameters(beta1)));
              check_same(actual, expected, name_of(path));
            }
          }
        }
      }
    }
  }
}

// Into arrays of other alignments too: what is aligned bypasses the caches.
void new_states_may_go_to_another_place() {
  for (const Path path : supported_paths()) {
    for (const DType type : {DType::float32, DType::bfloat16}) {
      for (const std::size_t lead : {std::size_t{0}, std::size_t{1}}) {
        for (const std::size_t n : {std::size_t{0}, std::size_t{5}, std::size_t{4097}}) {
          const Arrays start = random_arrays(n, lead, type, type);
          Arrays expected = start, old = start, made(n, lead, type, type);
          update_plainly(expected, hyperparameters());
          Slice slice = old.slice();
          const Slice target = made.slice();
          slice.new_master = target.new_master;
          slice.new_exp_avg = target.new_exp_avg;
          slice.new_exp_avg_sq = target.new_exp_avg_sq;
          slice.weights = target.weights;
          kernel_of(path)(slice, Coefficients::of(hyperparameters()));
          check_same(old, start, "what was only to be read");
          std::copy_n(start.master.begin(), lead, made.master.begin());
          std::copy_n(start.exp_avg.begin(), lead, made.exp_avg.begin());
          std::copy_n(start.exp_avg_sq.begin(), lead, made.exp_avg_sq.begin());
          made.gradient32 = expected.gradient32;
          made.gradient16 = expected.gradient16;
          std::copy_n(start.weights32.begin(), std::min(lead, start.weights32.size()), made.weights32.begin());
          std::copy_n(start.weights16.begin(), std::min(lead, start.weights16.size()), made.weights16.begin());
          check_same(made, expected, "another place");
        }
      }
    }
  }
}

void bfloat16_rounds_to_nearest_even() {
  // Without gradient, moments and learning rate the master stays, so the weights are its rounding.
  const std::uint32_t lower_halves[] = {0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
  Hyperparameters still{1, 0.0, 0.9, 0.999, 1e-8, 0.0, 1.0};
  for (const Path path : supported_paths()) {
    Arrays a(std::size_t{1} << 16, 0, DType::bfloat16, DType::bfloat16);
    for (const std::uint32_t lower : lower_halves) {
      for (std::uint32_t upper = 0; upper < a.length; ++upper) {
        a.master[upper] = float_of(upper << 16 | lower);
      }
      kernel_of(path)(a.slice(), Coefficients::of(still));
      for (std::uint32_t upper = 0; upper < a.length; ++upper) {
        const float x = float_of(upper << 16 | lower);
        CHECK(bits_of(a.master[upper]) == bits_of(canonical(x)), "%s moved %a", name_of(path), x);
        CHECK(a.weights16[upper].bits == rounded(x), "%s rounded %a to %#x", name_of(path), x, a.weights16[upper].bits);
      }
    }
  }
}

void threads_change_nothing() {
  Arrays expected = random_arrays(300'001, 0, DType::bfloat16, DType::bfloat16);
  const Arrays start = expected;
  update_plainly(expected, hyperparameters());
  for (const unsigned threads : {1U, 2U, 3U, 8U}) {
    Updater updater("auto", threads);
    CHECK(updater.threads() == threads, "%u", threads);
    for (int repetition = 0; repetition < 20; ++repetition) {
      Arrays actual = start;
      updater.update(actual.slice(), hyperparameters());
      check_same(actual, expected, "threads");
    }
  }
}

void pool_calls_each_index_once() {
  ThreadPool pool(4);
  const auto call_many_times = [&pool] {
    for (std::size_t count = 0; count < 200; ++count) {
      std::vector<std::atomic<int>> calls(count);
      pool.for_each(count, [&](std::size_t i) { ++calls[i]; });
      for (std::size_t i = 0; i < count; ++i) {
        CHECK(calls[i] == 1, "index %zu of %zu called %d times", i, count, calls[i].load());
      }
    }
  };
  std::thread other(call_many_times); // calls from two threads take turns
  call_many_times();
  other.join();
}

template <class F> void check_refused(const char *what, F f) {
  try {
    f();
  } catch (const std::invalid_argument &) {
    return;
  }
  CHECK(false, "%s was accepted", what);
}

void wrong_arguments_are_refused() {
  check_refused("step 0", [] { Coefficients::of({0, 1e-3, 0.9, 0.999, 1e-8, 0.0, 1.0}); });
  check_refused("no thread", [] { ThreadPool pool(0); });
  check_refused("an unknown path", [] { choose_path("sse"); });
}

} // namespace

int main() {
  every_path_has_the_plain_bits();
  new_states_may_go_to_another_place();
  bfloat16_rounds_to_nearest_even();
  threads_change_nothing();
  pool_calls_each_index_once();
  wrong_arguments_are_refused();
  for (const Path path : supported_paths()) {
    std::printf("tested %s\n", name_of(path));
  }
  return 0;
}
