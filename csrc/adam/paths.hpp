// The SIMD paths: which exist in this build, which this processor has, and the kernel of each.
#pragma once

#include "adamw.hpp"

#include <string>
#include <vector>

namespace lohan::adam {

enum class Path : std::uint8_t { scalar, avx2, avx512 };

const char *name_of(Path path);

// The paths that this build and this processor have, fastest first; scalar is always among them.
std::vector<Path> supported_paths();

// The path of that name, or the fastest for "auto".
// Throws std::invalid_argument for a name that does not exist or is not supported here.
Path choose_path(const std::string &name);

Kernel kernel_of(Path path);

} // namespace lohan::adam
