#include "updater.hpp"

#include <algorithm>

namespace lohan::adam {

namespace {

// The unit that a thread takes: long enough to amortise taking it and to run the hardware prefetchers, short enough to
// balance. A multiple of 32 parameters, so that no two threads write to one cache line of an aligned array.
constexpr std::size_t block_parameters = std::size_t{1} << 15;

} // namespace

Updater::Updater(const std::string &simd, unsigned threads) : path_(choose_path(simd)), pool_(threads) {}

void Updater::update(const Slice &slice, const Hyperparameters &hyperparameters) {
  const Coefficients coefficients = Coefficients::of(hyperparameters);
  const Kernel kernel = kernel_of(path_);
  const std::size_t blocks = (slice.length + block_parameters - 1) / block_parameters;
  pool_.for_each(blocks, [&](std::size_t block) {
    const std::size_t offset = block * block_parameters;
    kernel(slice.part(offset, std::min(block_parameters, slice.length - offset)), coefficients);
  });
}

} // namespace lohan::adam
