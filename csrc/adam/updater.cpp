#include "updater.hpp"

#include <algorithm>
#include <cfenv>

namespace lohan::adam {

namespace {

// The unit that a thread takes: long enough to amortise taking it and to run the hardware prefetchers, short enough to
// balance. A multiple of 32 parameters, so that no two threads write to one cache line of an aligned array.
constexpr std::size_t block_parameters = std::size_t{1} << 15;

// The floating-point environment is the thread's: a caller's may flush subnormals to zero (torch.set_flush_denormal, or
// any library built with -ffast-math) where a worker's does not. While this lives, it is the default one.
class DefaultEnvironment {
public:
  DefaultEnvironment() {
    std::fegetenv(&callers_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultEnvironment() { std::fesetenv(&callers_); }
  DefaultEnvironment(const DefaultEnvironment &) = delete;
  DefaultEnvironment &operator=(const DefaultEnvironment &) = delete;

private:
  std::fenv_t callers_;
};

} // namespace

Updater::Updater(const std::string &simd, unsigned threads) : path_(choose_path(simd)), pool_(threads) {}

void Updater::update(const Slice &slice, const Hyperparameters &hyperparameters) {
  const Coefficients coefficients = Coefficients::of(hyperparameters);
  const Kernel kernel = kernel_of(path_);
  const std::size_t blocks = (slice.length + block_parameters - 1) / block_parameters;
  pool_.for_each(blocks, [&](std::size_t block) {
    const DefaultEnvironment environment;
    const std::size_t offset = block * block_parameters;
    kernel(slice.part(offset, std::min(block_parameters, slice.length - offset)), coefficients);
  });
}

} // namespace lohan::adam
