#include "paths.hpp"

#include <stdexcept>

namespace lohan::adam {

const char *name_of(Path path) {
  switch (path) {
  case Path::avx512:
    return "avx512";
  case Path::avx2:
    return "avx2";
  case Path::scalar:
    break;
  }
  return "scalar";
}

std::vector<Path> supported_paths() {
  std::vector<Path> paths;
#ifdef LOHAN_ADAM_X86
  // The builtin also asks whether the operating system saves the wide registers.
  if (__builtin_cpu_supports("avx512f")) {
    paths.push_back(Path::avx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    paths.push_back(Path::avx2);
  }
#endif
  paths.push_back(Path::scalar);
  return paths;
}

Path choose_path(const std::string &name) {
  const std::vector<Path> paths = supported_paths();
  if (name == "auto") {
    return paths.front();
  }
  std::string names = "auto";
  for (const Path path : paths) {
    if (name == name_of(path)) {
      return path;
    }
    names += std::string(", ") + name_of(path);
  }
  throw std::invalid_argument("SIMD path '" + name + "' is not supported on this processor; choose one of: " + names);
}

Kernel kernel_of(Path path) {
#ifdef LOHAN_ADAM_X86
  if (path == Path::avx512) {
    return update_avx512;
  }
  if (path == Path::avx2) {
    return update_avx2;
  }
#endif
  (void)path;
  return update_scalar;
}

} // namespace lohan::adam
