// One opened optimizer: a SIMD path and the threads to run it on.
#pragma once

#include "paths.hpp"
#include "pool.hpp"

namespace lohan::adam {

class Updater {
public:
  // `simd`: "auto" or a path's name. Throws std::invalid_argument as choose_path and ThreadPool do.
  Updater(const std::string &simd, unsigned threads);

  Path path() const { return path_; }
  unsigned threads() const { return pool_.threads(); }

  // Updates the slice in place. The result does not depend on path and threads. Throws as Coefficients::of and
  // ThreadPool::for_each do.
  void update(const Slice &slice, const Hyperparameters &hyperparameters);

private:
  Path path_;
  ThreadPool pool_;
};

} // namespace lohan::adam
