// Detects the instruction set that the CPU kernels use on this machine.
//
// Included by the operator library (_C, which dispatches on it) and by the information module (_native, which reports
// it), so it includes neither torch nor pybind11.
//
//   Isa::generic   the compiler's baseline (SSE2 on x86-64, NEON on aarch64)
//   Isa::avx2      x86-64-v3: AVX2, FMA, BMI1, BMI2, F16C, LZCNT, MOVBE
//   Isa::avx512    x86-64-v4: the above and AVX-512 F, BW, CD, DQ, VL
//
// The levels are those of the x86-64 psABI. Each is detected by individual features, because only newer compilers
// accept the names of the levels in __builtin_cpu_supports. The builtin also checks that the operating system saves the
// wide registers.
#pragma once

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#define SSGRL_HAS_ONEDNN  // PyTorch's builds for these have it
#endif

namespace ssgrl {

enum class Isa { generic, avx2, avx512 };

inline Isa detect_isa() {
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) {
    return Isa::avx512;
  }
  if (v3) {
    return Isa::avx2;
  }
#endif
  return Isa::generic;
}

inline const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::generic:
      break;
  }
  return "generic";
}

// The library of the large float32 products (products.h): MKL, PyTorch's BLAS on x86-64, is at its best on Intel's
// processors alone.
enum class ProductLibrary { blas, onednn };

inline ProductLibrary product_library() {
#ifdef SSGRL_HAS_ONEDNN
  static const ProductLibrary chosen = [] {
    const char* wanted = std::getenv("SSGRL_CPU_PRODUCTS");
    const bool blas = wanted && std::strcmp(wanted, "blas") == 0, forced = wanted && std::strcmp(wanted, "onednn") == 0;
    if (wanted && *wanted && !blas && !forced) {
      throw std::invalid_argument(std::string("SSGRL_CPU_PRODUCTS must be blas or onednn, got ") + wanted);
    }
    __builtin_cpu_init();
    return forced || (!blas && !__builtin_cpu_is("intel")) ? ProductLibrary::onednn : ProductLibrary::blas;
  }();
  return chosen;
#else
  return ProductLibrary::blas;
#endif
}

}  // namespace ssgrl
